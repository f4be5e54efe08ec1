"""A reward: one verdict a request, in order, whatever the model wrote; judged where a run would judge it."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from lightrft_core.data import Prompt, Score, ScoreRequest
from lightrft_core.descriptors import RewardComponent
from lightrft_core.isolation import IsolatedReward, WorkerSpec
from lightrft_core.kinds import BY_NAME
from lightrft_core.protocols import Reward
from lightrft_core.sections import RewardSection
from lightrft_core.testing.results import Case, Check, CheckFailed, require
from lightrft_core.verdicts import as_scores

LONG = 20_000
RESPONSES = (
    "The answer is 42.",
    "<think>6 * 7 = 42</think>\n#### 42",
    r"So we get $\boxed{42}$",
    "wrong",
    "",
    " \n\t",
    "четыре 四十二 ٤٢ 🤖 \u200b\ufeff e\u0301",
    "{[(<|\"'`\\" * 5,
    "4 " * (LONG // 2),
    "\x00\ud83d",
)


def requests(responses: Sequence[str] = RESPONSES) -> list[ScoreRequest]:
    """One request a response; the right answer is 42."""
    prompt = Prompt(id="check", messages=({"role": "user", "content": "What is 6 * 7?"},), label="math", reference="42")
    return [ScoreRequest(text, tuple(range(len(text) // 4)), prompt, "stop") for text in responses]


@contextmanager
def scorer(case: Case) -> Iterator[Reward]:
    """The reward as a run has it: in a worker process where it is isolated."""
    component, config = cast(RewardComponent, case.component), cast(RewardSection, case.options)
    if not component.is_isolated:
        yield case.target(config)
        return
    base = BY_NAME["reward"].config_base
    worker = IsolatedReward(
        WorkerSpec(
            name=component.name,
            target=component.target,
            config_target=component.config or f"{base.__module__}:{base.__qualname__}",
            config=config,
            takes_batches="batch" in component.provides,
            needs_media="media" in component.needs,
        )
    )
    try:
        yield worker
    finally:
        worker.close()


def verdicts(reward: Reward, asked: Sequence[ScoreRequest]) -> list[Score]:
    """Checked verdicts. `CheckFailed` where one is no verdict at all."""
    scores = as_scores(reward.score(asked), len(asked))
    for request, score in zip(asked, scores, strict=True):
        reason = score.reason or ""
        broken = reason.startswith(("raised ", "returned ")) and reason != "returned None"
        if score.value is None and broken:
            raise CheckFailed(f"response {request.response[:40]!r}: {reason}")
        require(score.value is None or math.isfinite(score.value), f"{request.response[:40]!r}: not finite")
    return scores


def every_response_gets_a_verdict(case: Case) -> None:
    """Right, wrong, empty, blank, other scripts, broken markup, very long, broken unicode; and no request at all."""
    with scorer(case) as reward:
        verdicts(reward, requests())
        require(list(reward.score([])) == [], "no requests must give no verdicts")


def verdicts_do_not_depend_on_neighbours(case: Case) -> None:
    """One by one, all at once, in reverse: the same values."""
    with scorer(case) as reward:
        together = [score.value for score in verdicts(reward, requests())]
        again = [score.value for score in verdicts(reward, requests()[::-1])][::-1]
        require(again == together, "another order of requests changes verdicts")
        single = [verdicts(reward, [request])[0].value for request in requests()]
        require(single == together, "a verdict depends on the other requests of its call")


def isolated_reward_loads_in_its_worker(case: Case) -> str | None:
    """From its target and options as text, in a process of its own."""
    if not cast(RewardComponent, case.component).is_isolated:
        return "not isolated"
    with scorer(case) as reward:
        cast(IsolatedReward, reward).start()
    return None


CHECKS: tuple[Check, ...] = (
    isolated_reward_loads_in_its_worker,
    every_response_gets_a_verdict,
    verdicts_do_not_depend_on_neighbours,
)
