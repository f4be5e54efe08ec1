"""The toys: a bandit without torch that learns, and ranks as threads."""

import threading
from dataclasses import replace

import pytest
from lightrft_core.data import Sampling
from lightrft_core.descriptors import Component
from lightrft_core.drawing import sample_groups
from lightrft_core.objective import Objective
from lightrft_core.plugins import Plugins
from lightrft_core.testing import check_component
from lightrft_core.testing.toys import (
    ToyEngine,
    ToyEngineConfig,
    ToyWorlds,
    toy_advantage,
    toy_groups,
    toy_prompts,
    toy_setup,
)

TOYS = "lightrft_core.testing.toys"
BESIDE_A_TRAINER = [
    "greedy takes the trainers likeliest token",
    "logprobs are the trainers",
    "a step of the trainer is served",
]
OBJECTIVE = Objective(loss=lambda inputs: None)


@pytest.mark.parametrize(
    ("kind", "name", "skipped"), [("task", "ToyTask", []), ("engine", "ToyEngine", BESIDE_A_TRAINER)]
)
def test_toys_pass_the_kit(kind, name, skipped):
    component = Component(name="toy", target=f"{TOYS}:{name}", config=f"{TOYS}:{name}Config", summary="A toy.")
    results = check_component(kind, component, Plugins.load())
    assert [result for result in results if not result.ok] == []
    assert [result.name for result in results if result.is_skipped] == skipped  # the toy strategy measures no gap


def test_the_toy_policy_learns_the_successor(tmp_path):
    setup = toy_setup(tmp_path)
    model, strategy = setup.require_model(), setup.require_strategy()
    engine = ToyEngine(ToyEngineConfig(), setup)
    sampling = Sampling(max_new_tokens=2, stop_token_ids=model.stop_token_ids)
    shares = []
    for step in range(60):
        groups = sample_groups(engine, model, toy_prompts(), sampling, 16, run_seed=0, purpose=step)
        for group in groups:
            for rollout in group.rollouts:
                rollout.reward = float(rollout.text[:1] == group.prompt.reference)
        batch = model.collate(groups)
        shares.append(sum(batch.rewards_B) / len(batch))
        batch = replace(batch, advantages_BT=toy_advantage(batch, setup.world).advantages_BT)
        for minibatch in batch.minibatches(1, 1, step):
            for _ in range(20):
                strategy.step(minibatch, OBJECTIVE)
        engine.update_weights(strategy.weights, step + 1)
        assert engine.fingerprint(list(strategy.fingerprint())) == strategy.fingerprint()
    assert sum(shares[:3]) / 3 < 0.2
    assert sum(shares[-3:]) / 3 > 0.8


def test_toy_groups_are_scored(tmp_path):
    rollouts = [rollout for group in toy_groups(toy_setup(tmp_path)) for rollout in group.rollouts]
    assert len(rollouts) == 16
    assert {rollout.reward for rollout in rollouts} <= {0.0, 1.0}


def test_ranks_add_up_and_gather_in_order():
    def work(world):
        world.barrier()
        return world.sum([world.rank, 1.0]), world.gather({"rank": world.rank})

    assert ToyWorlds(3).run(work) == [([3.0, 3.0], [{"rank": 0}, {"rank": 1}, {"rank": 2}])] * 3


def test_a_rank_that_raises_releases_the_others():
    def work(world):
        if world.rank == 1:
            raise KeyError("rank 1")
        world.barrier()

    before = threading.active_count()
    with pytest.raises(KeyError, match="rank 1"):
        ToyWorlds(2).run(work)
    assert threading.active_count() == before


def test_split_gives_every_rank_its_share():
    assert ToyWorlds(2).split(lambda share, world: world.sum([share])[0] + world.rank, (10.0, 20.0)) == [30.0, 31.0]
