"""Groups to test filters and shapers with, as plain Python."""

from collections.abc import Sequence

from lightrft_core.data import Group, Prompt, Rollout

MAX_NEW_TOKENS = 12


def group(name: str, rewards: Sequence[float | None], lengths: Sequence[int] = ()) -> Group:
    """A group whose siblings have these rewards (None: unscored), `accuracy` scores and lengths in tokens."""
    prompt = Prompt(id=name, messages=({"role": "user", "content": name},), reference="1")
    rollouts = [
        _rollout(prompt, index, reward, lengths[index] if lengths else 3 + index)
        for index, reward in enumerate(rewards)
    ]
    return Group(prompt, (1, 2, 3), rollouts)


def groups() -> list[Group]:
    """Mixed, all wrong, all right, partly unscored, wholly unscored, a single one; lengths up to the limit."""
    return [
        group("mixed", (1.0, 0.0, 1.0, 0.0), (2, MAX_NEW_TOKENS, 5, MAX_NEW_TOKENS - 1)),
        group("wrong", (0.0, 0.0, 0.0)),
        group("right", (1.0, 1.0, 1.0)),
        group("partly", (1.0, None, 0.0)),
        group("unscored", (None, None)),
        group("single", (0.5,)),
    ]


def _rollout(prompt: Prompt, index: int, reward: float | None, length: int) -> Rollout:
    token_ids = tuple(range(5, 5 + length))
    return Rollout(
        prompt_id=prompt.id,
        index=index,
        token_ids=token_ids,
        text=" ".join(map(str, token_ids)),
        engine_logprobs=(-0.5,) * length,
        finish_reason="length" if length == MAX_NEW_TOKENS else "stop",
        policy_version=0,
        scores={} if reward is None else {"accuracy": reward},
        reward=reward,
        shaped_reward=reward,
        unscored=None if reward is not None else "not scored",
        seed=index,
    )
