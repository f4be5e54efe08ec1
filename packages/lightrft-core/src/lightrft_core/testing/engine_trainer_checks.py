"""An engine beside its trainer: both know the same policy, before and after an update."""

import math
from collections.abc import Sequence

from lightrft_core.abilities import GaugingStrategy
from lightrft_core.data import Batch, Completion, Group, Rollout
from lightrft_core.protocols import Setup
from lightrft_core.testing.engine_case import engine_of, is_frozen, prompts_for, requests
from lightrft_core.testing.results import Case, Skipped, require
from lightrft_core.testing.strategy_checks import batch_of, plain_objective

TRAINER_TOLERANCE = 0.02  # nats a token: bf16 and other kernels stay below, wrong positions or temperatures do not
NUM_DRAWN = 16


def logprobs_are_the_trainers(case: Case) -> None:
    """By the gap that the strategy measures, sampled and greedy; a wrong temperature or position shows.

    One with `frozen_weights` has none of the trainer's.
    """
    engine = engine_of(case)
    if is_frozen(case):
        return
    setup, trainer = case.parts["setup"], _trainer(case)
    for temperature in (1.0, 0.0):
        batch = _batch(setup, engine.generate(requests(setup, temperature=temperature)))
        trainer.fill(batch, frozenset({"old_logprobs"}))
        gap = trainer.gap(batch)
        mean = gap.mean if gap is not None else math.nan
        require(
            mean <= TRAINER_TOLERANCE,
            f"log-probabilities are not the trainer's at temperature {temperature:g}: off by {mean:.3g}",
        )


def greedy_takes_the_trainers_likeliest_token(case: Case) -> None:
    """Temperature 0: no first token that was drawn instead is likelier to the trainer. Not with `frozen_weights`."""
    engine = engine_of(case)
    if is_frozen(case):
        return
    setup, trainer = case.parts["setup"], _trainer(case)
    greedy = engine.generate(requests(setup, num_siblings=1, temperature=0.0, max_new_tokens=1))
    drawn = engine.generate(requests(setup, num_siblings=NUM_DRAWN, temperature=2.0, max_new_tokens=1))
    best, others = (trainer.logprobs(_batch(setup, answers)).logprobs_BT for answers in (greedy, drawn))
    for number, answer in enumerate(greedy):
        likeliest = max(float(row[0]) for row in others[number * NUM_DRAWN : (number + 1) * NUM_DRAWN])
        require(
            float(best[number][0]) >= likeliest - TRAINER_TOLERANCE,
            f"temperature 0 takes token {answer[0].token_ids[0]}, and the trainer finds another likelier",
        )


def a_step_of_the_trainer_is_served(case: Case) -> None:
    """After an update and a sync completions are the new policy's; the trainer is then put back, and served again.

    Prefixes that were kept over the sync show too. Not with `frozen_weights`.
    """
    engine = engine_of(case)
    if is_frozen(case):
        return
    setup, trainer, folder = case.parts["setup"], _trainer(case), case.run_dir / "before-the-step"
    before = engine.generate(requests(setup))
    folder.mkdir(exist_ok=True)
    trainer.save(folder)
    try:
        for _ in range(2):  # a schedule may begin at a rate of 0
            stats = trainer.step(batch_of(setup), plain_objective())
            require(stats.skipped is None, f"the trainer's step was skipped: {stats.skipped}")
        engine.update_weights(trainer.weights, 1)
        require(engine.generate(requests(setup)) != before, "an update of the weights changes no completion")
        logprobs_are_the_trainers(case)
    finally:
        trainer.load(folder)
        engine.update_weights(trainer.weights, 2)


def _trainer(case: Case) -> GaugingStrategy:
    trainer: object = case.parts["setup"].require_strategy()
    if not isinstance(trainer, GaugingStrategy):
        raise Skipped("a strategy that measures the gap to the engine (`gap`)")
    return trainer


def _batch(setup: Setup, answers: Sequence[Sequence[Completion]]) -> Batch:
    model, groups = setup.require_model(), []
    for prompt, completions in zip(prompts_for(setup), answers, strict=True):
        rollouts = [
            Rollout(prompt.id, index, one.token_ids, "", one.logprobs, one.finish_reason, 0, reward=0.0)
            for index, one in enumerate(completions)
        ]
        groups.append(Group(prompt, model.render(prompt), rollouts))
    return model.collate(groups)
