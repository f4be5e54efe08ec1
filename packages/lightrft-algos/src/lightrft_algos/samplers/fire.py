"""FIRE (arXiv:2410.21236, flaming-hot initiation with regular execution): a hot first token, then as usual.

The first token is drawn at a high temperature with every other setting unchanged, the rest at the regular one with one
token fewer. The rest continues the first token's id: no text is encoded again. The behaviour log-probability of the
first token is that of the hot distribution, so that a `correction` knows how unlikely the policy itself finds it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lightrft_core.data import Completion, GenerateRequest, Group, Prompt, Rollout, Sampling, seed_for
from lightrft_core.drawing import sample_groups, sampling_of
from lightrft_core.protocols import Engine, ModelAdapter, Setup
from lightrft_core.sections import SamplerSection
from pydantic import Field


class FireConfig(SamplerSection):
    """Options of `fire`."""

    first_token_temperature: float = Field(default=10.0, gt=0)
    """Temperature of the first token; the paper's is 10."""


class FireSampler:
    """Two calls of the engine a step: first tokens, then continuations. Each draw of a sibling has its own seed."""

    def __init__(self, config: FireConfig, setup: Setup) -> None:
        self._config, self._setup = config, setup

    def sample(self, engine: Engine, prompts: Sequence[Prompt], *, step: int, attempt: int = 0) -> list[Group]:
        """One group per prompt, in order; a first token that ends the text is the whole completion."""
        config, model = self._config, self._setup.require_model()
        regular = sampling_of(config, model.stop_token_ids)
        first = replace(regular, max_new_tokens=1, temperature=config.first_token_temperature)
        seed, purpose = self._setup.run.seed, f"{step}+{attempt}" if attempt else step
        groups = sample_groups(engine, model, prompts, first, config.group_size, run_seed=seed, purpose=purpose)
        if regular.max_new_tokens > 1:
            _continue(engine, model, groups, replace(regular, max_new_tokens=regular.max_new_tokens - 1))
        return groups


def _continue(engine: Engine, model: ModelAdapter, groups: Sequence[Group], sampling: Sampling) -> None:
    """Draw the rest of every rollout that its first token did not end; siblings that begin alike share a request."""
    open_rollouts: list[list[Rollout]] = []
    requests: list[GenerateRequest] = []
    for group in groups:
        for beginning, rollouts in _by_first_token(group.rollouts).items():
            seeds = tuple(seed_for(rollout.seed, "continuation") for rollout in rollouts)
            token_ids = group.prompt_token_ids + beginning
            requests.append(GenerateRequest(group.prompt.id, token_ids, seeds, sampling, group.prompt.media))
            open_rollouts.append(rollouts)
    for rollouts, completions in zip(open_rollouts, engine.generate(requests) if requests else (), strict=True):
        for rollout, completion in zip(rollouts, completions, strict=True):
            _extend(rollout, completion, model, sampling.stop)


def _by_first_token(rollouts: Iterable[Rollout]) -> dict[tuple[int, ...], list[Rollout]]:
    """Rollouts that are to go on: a limit of one token, and nothing else, has ended them."""
    found: dict[tuple[int, ...], list[Rollout]] = {}
    for rollout in rollouts:
        if rollout.finish_reason == "length":
            found.setdefault(rollout.token_ids, []).append(rollout)
    return found


def _extend(rollout: Rollout, rest: Completion, model: ModelAdapter, stop: Sequence[str]) -> None:
    """Join both parts. A stop text that began in the first token was hidden from the second call: cut behind it."""
    token_ids = rollout.token_ids + rest.token_ids
    logprobs, finish_reason = rollout.engine_logprobs + rest.logprobs, rest.finish_reason
    end = _end_of_stop(model, token_ids, stop)
    if end is not None:
        token_ids, logprobs, finish_reason = token_ids[:end], logprobs[:end], "stop"
    rollout.token_ids, rollout.engine_logprobs, rollout.finish_reason = token_ids, logprobs, finish_reason
    rollout.loss_mask = (True,) * len(token_ids)
    rollout.text = model.decode(token_ids)


def _end_of_stop(model: ModelAdapter, token_ids: Sequence[int], stop: Sequence[str]) -> int | None:
    """How many tokens it takes until a stop text is complete; None where none is."""
    if not stop or not any(text in model.decode(token_ids) for text in stop):
        return None
    ends = range(1, len(token_ids) + 1)
    return next(end for end in ends if any(text in model.decode(token_ids[:end]) for text in stop))
