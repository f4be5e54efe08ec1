"""Parts of a step that need tensors, on the quickstart model: KL, correction, selectors, and a rank without rows."""

import pytest
import torch
from lightrft_core.data import Batch
from lightrft_core.protocols import Advantages, Corrected, SoloWorld

from tests.core.real_run import disturb, real_run


@pytest.fixture
def build(tmp_path):
    """A trainer whose batches are kept, as the advantage sees them; its policy has left the reference."""
    runs = []

    def make(*sets):
        run = real_run(tmp_path, "selftest.enabled=false", *sets)
        runs.append(run)
        disturb(run)
        trainer = run.trainer()
        seen: list[Batch] = []
        advantage = trainer.parts.advantage
        trainer.parts.advantage = lambda batch, world: seen.append(batch) or advantage(batch, world)
        return trainer, seen

    yield make
    for run in runs:
        run.core.close()


def test_a_kl_in_the_reward_is_taken_off_token_by_token_and_reported(build):
    trainer, seen = build("kl={use: k1, place: reward, coef: 0.5}")
    report = trainer.step()
    [batch] = seen
    kl_BT = (batch.old_logprobs_BT - batch.ref_logprobs_BT).masked_fill(~batch.mask_BT, 0.0)
    assert kl_BT.abs().max() > 1e-3
    assert torch.equal(batch.token_rewards_BT, kl_BT * -0.5)
    assert report.metrics["train/kl"] == pytest.approx(float(kl_BT.sum()) / float(batch.mask_BT.sum()))
    assert report.metrics["train/kl_coef"] == 0.5
    assert trainer.parts.objective.kl is None


def test_a_kl_in_the_loss_leaves_the_rewards_alone(build):
    trainer, seen = build("kl={use: k3, coef: 0.5}")
    report = trainer.step()
    [batch] = seen
    assert batch.token_rewards_BT is None
    assert report.metrics["train/kl"] > 0
    assert trainer.parts.objective.kl is not None


def test_the_adaptive_weight_follows_the_kl_in_the_reward(build):
    trainer, _ = build("kl={use: k2, place: reward, coef: 0.5, target: 1.0e-9, horizon: 100}")
    report = trainer.step()
    assert report.metrics["train/kl"] > 1e-9
    assert trainer.parts.kl.coef == pytest.approx(0.5 * (1 + 0.2 * 4 / 100))


def test_corrections_and_selectors_narrow_the_mask_together(build):
    trainer, seen = build()
    corrected, selected = [], []

    def correct(batch, world):
        mask_BT = torch.ones_like(batch.mask_BT)
        mask_BT[:, 0] = False
        corrected.append(batch.mask_BT.clone())
        return Corrected(torch.full(mask_BT.shape, 0.5), mask_BT, {"correction/halved": 1.0})

    def select(batch, world):
        selected.append(batch.mask_BT.clone())
        mask_BT = torch.ones_like(batch.mask_BT)
        mask_BT[:, 2] = False
        return mask_BT

    trainer.parts.correction, trainer.parts.selectors = correct, [select]
    report = trainer.step()
    [batch] = seen
    expected_BT = corrected[0].clone()
    expected_BT[:, 0] = False
    assert torch.equal(selected[0], expected_BT)
    expected_BT[:, 2] = False
    assert torch.equal(batch.mask_BT, expected_BT)
    assert set(batch.weights_BT.flatten().tolist()) == {0.5}
    assert report.metrics["correction/halved"] == 1.0


def test_old_logprobs_of_later_minibatches_are_those_of_the_steps_start(build):
    """Filled after the first update they would be the updated policy's, and the ratio 1 for all."""
    trainer, _ = build("optim.batch_size=2", "optim.lr=0.01", "optim.warmup_steps=0", "sampler.prompts_per_step=4")
    trainer.parts.advantage = lambda batch, world: Advantages(batch.mask_BT.float())
    report = trainer.step()
    assert report.metrics["train/grad_norm"] > 0
    assert abs(report.metrics["train/ratio"] - 1.0) > 1e-3
    assert report.metrics["gap/logprob_max_abs"] < 1e-3


def test_a_rank_without_rows_goes_through_every_part(build):
    trainer, _ = build("kl={use: k3}")
    parts = trainer.parts
    batch = parts.model.collate([])
    parts.strategy.fill(batch, parts.needs | {"old_logprobs", "entropy"})
    batch.advantages_BT = parts.advantage(batch, SoloWorld()).advantages_BT
    [minibatch] = batch.minibatches(1, 1, 0)
    before = {name: value.clone() for name, value in parts.strategy.weights()}
    stats = parts.strategy.step(minibatch, parts.objective)
    assert stats.skipped is None
    assert all(torch.equal(value, before[name]) for name, value in parts.strategy.weights())
