"""A sampler: one whole group a prompt, in order, reproducible, each sibling from its own seed."""

import math
from collections.abc import Sequence

from lightrft_core.data import Group, Prompt
from lightrft_core.testing.results import Case, Check, require
from lightrft_core.testing.toys import ToyEngine, ToyEngineConfig, toy_prompts, toy_setup

VERSION = 3


def sample(case: Case, prompts: Sequence[Prompt], step: int = 1, seed: int = 0) -> list[Group]:
    """Groups from a toy engine."""
    setup = toy_setup(case.run_dir, seed=seed)
    engine = ToyEngine(ToyEngineConfig(), setup)
    engine.update_weights(setup.require_strategy().weights, VERSION)
    groups: list[Group] = case.target(case.options, setup).sample(engine, prompts, step=step)
    return groups


def every_prompt_gets_its_group(case: Case) -> None:
    """In the order of the prompts, all of one size."""
    prompts = toy_prompts()[2:6]
    groups = sample(case, prompts)
    require([group.prompt.id for group in groups] == [prompt.id for prompt in prompts], "not one group per prompt")
    sizes = {len(group.rollouts) for group in groups}
    wanted = getattr(case.options, "group_size", None)
    require(sizes == {wanted}, f"groups have {sorted(sizes)} rollouts, group_size is {wanted}")


def rollouts_are_complete(case: Case) -> None:
    """Ids, indices, versions, texts and log-probabilities agree with each other; nothing is scored yet."""
    setup = toy_setup(case.run_dir)
    model = setup.require_model()
    for group in sample(case, toy_prompts()[:3]):
        require(group.prompt_token_ids == model.render(group.prompt), "prompt_token_ids are not the rendered prompt")
        indices = [rollout.index for rollout in group.rollouts]
        require(len(set(indices)) == len(indices), "two siblings share an index")
        for rollout in group.rollouts:
            require(rollout.prompt_id == group.prompt.id, "a rollout names another prompt than its group's")
            require(rollout.text == model.decode(rollout.token_ids), "the text is not the decoded completion")
            require(rollout.policy_version == VERSION, "policy_version is not the engine's")
            finite = all(math.isfinite(value) and value <= 0 for value in rollout.engine_logprobs)
            require(finite, "a log-probability is positive or not finite")
            require(rollout.reward is None, "a sampler does not score")


def same_seed_gives_the_same_rollouts(case: Case) -> None:
    """And so does each prompt by itself: nothing depends on the neighbours."""
    prompts = toy_prompts()[:4]
    expected = sample(case, prompts)
    require(sample(case, prompts) == expected, "the same seed and step give other rollouts")
    require(sample(case, prompts[2:3]) == expected[2:3], "a group depends on the other prompts of its call")


def seeds_differ_by_sibling_step_and_run(case: Case) -> None:
    """No two rollouts share a seed."""
    prompts = toy_prompts()[:3]
    groups = [*sample(case, prompts), *sample(case, prompts, step=2), *sample(case, prompts, seed=1)]
    seeds = [rollout.seed for group in groups for rollout in group.rollouts]
    require(
        len(set(seeds)) == len(seeds), "two rollouts share a seed: derive it from (run seed, step, prompt id, sibling)"
    )


CHECKS: tuple[Check, ...] = (
    every_prompt_gets_its_group,
    rollouts_are_complete,
    same_seed_gives_the_same_rollouts,
    seeds_differ_by_sibling_step_and_run,
)
