"""fp16: losses are scaled as torch scales them, overflows skip a step on all ranks, runs resume with their scale."""

from dataclasses import replace

import pytest
import torch
from lightrft_core.data import LossOutput
from lightrft_core.objective import Objective
from lightrft_engines.training.config import Fsdp2Config
from lightrft_engines.training.loss_scale import LOWEST, START, LossScale
from pydantic import ValidationError

from tests.engines.ranks import on_ranks
from tests.engines.test_strategies import OBJECTIVE, SHARES, batch_of, build, largest, steps


def times(factor):
    """An objective whose gradient is that much larger than the policy's own."""

    def loss(inputs):
        return LossOutput(-factor * (inputs.logprobs_BT - inputs.old_logprobs_BT).exp() * inputs.advantages_BT)

    return Objective(loss)


def test_it_moves_as_torchs_own_scale():
    scaler = torch.amp.GradScaler("cpu", init_scale=START, growth_interval=3)
    own, weight = LossScale(interval=3), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for is_sound in (0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1):
        assert own.begin() == scaler.scale(torch.ones(1)).item()
        weight.grad = torch.tensor([1.0 if is_sound else float("inf")])
        scaler.step(optimizer)
        scaler.update()
        own.end(is_sound=bool(is_sound))
        assert own.was_lowered == (not is_sound)
    assert own.begin() == scaler.get_scale()


def test_it_never_falls_below_the_lowest_and_then_takes_no_blame():
    scale = LossScale()
    while scale.begin() > LOWEST:
        scale.end(is_sound=False)
        assert scale.was_lowered
    scale.end(is_sound=False)
    assert (scale.begin(), scale.was_lowered) == (LOWEST, False)


@pytest.mark.parametrize(("use", "size"), [("single", 1), ("ddp", 2), ("fsdp2", 2)])
def test_fp16_takes_about_the_steps_of_fp32(kit, qwen_folder, tmp_path, use, size):
    losses, weights, _ = steps(kit, qwen_folder, "single", list(range(8)))
    shares = {1: [list(range(8))], 2: SHARES[2]}[size]
    for found, own, _ in on_ranks(
        lambda rank: steps(kit, qwen_folder, use, shares[rank], precision="fp16"), size, tmp_path
    ):
        assert largest(own, weights) <= 0.01
        for one, exact in zip(found, losses, strict=True):
            assert one.pop("loss_scale") == START
            assert one == pytest.approx(exact, rel=0.05, abs=0.02)


def first_norm(kit, folder, precision, factor):
    strategy, adapter = build(kit, folder, "single", precision=precision, needs=())
    return strategy.step(batch_of(kit, adapter, 0), times(factor)).grad_norm


def test_small_gradients_do_not_vanish(kit, qwen_folder):
    exact = first_norm(kit, qwen_folder, "fp32", 1e-6)
    assert 0 < exact < 1e-4
    assert first_norm(kit, qwen_folder, "fp16", 1e-6) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("use", ["ddp", "fsdp2"])
def test_an_overflow_changes_nothing_on_any_rank_and_lowers_the_scale(kit, qwen_folder, tmp_path, use):
    def work(rank):
        strategy, adapter = build(kit, qwen_folder, use, precision="fp16", needs=())
        before = {name: tensor.clone() for name, tensor in strategy.weights()}
        tried = []
        for _ in range(12):
            stats = strategy.step(batch_of(kit, adapter, 0).rows(SHARES[2][rank]), times(100.0))
            total, count = stats.metrics["loss_scale"]
            tried.append((total / count, stats.skipped, stats.rescaled))
            if stats.skipped is None:
                break
            assert all(torch.equal(tensor, before[name]) for name, tensor in strategy.weights())
        moved = any(not torch.equal(tensor, before[name]) for name, tensor in strategy.weights())
        return tried, moved

    first, second = on_ranks(work, 2, tmp_path)
    assert first == second
    tried, moved = first
    assert moved and len(tried) > 1
    assert [scale for scale, _, _ in tried] == [START / 2**number for number in range(len(tried))]
    assert all(rescaled and "the gradient norm is" in skipped for _, skipped, rescaled in tried[:-1])
    assert tried[-1][1:] == (None, False)


def test_what_overflows_at_the_lowest_scale_is_a_sign_of_trouble(kit, qwen_folder):
    strategy, adapter = build(kit, qwen_folder, "single", precision="fp16", needs=())
    broken = Objective(lambda inputs: LossOutput(inputs.logprobs_BT * float("nan")))
    found = [strategy.step(batch_of(kit, adapter, 0), broken) for _ in range(18)]
    assert [stats.rescaled for stats in found] == [True] * 16 + [False] * 2
    assert all(stats.skipped == "the gradient norm is nan" for stats in found)


def test_bf16_and_fp32_know_no_scale(kit, qwen_folder):
    strategy, adapter = build(kit, qwen_folder, "single", precision="bf16", needs=())
    broken = Objective(lambda inputs: LossOutput(inputs.logprobs_BT * float("nan")))
    stats = strategy.step(batch_of(kit, adapter, 0), broken)
    assert not stats.rescaled and stats.skipped is not None
    assert "loss_scale" not in stats.metrics


@pytest.mark.parametrize("use", ["single", "fsdp2"])
def test_a_run_resumes_exactly_with_its_scale(kit, qwen_folder, tmp_path, use):
    def work(rank):
        first, adapter = build(kit, qwen_folder, use, precision="fp16", needs=())
        for factor in (1e3, 1.0):  # an overflow, then a step
            first.step(batch_of(kit, adapter, 0), times(factor))
        saved = tmp_path / "saved"
        saved.mkdir()
        first.save(saved)
        second, _ = build(kit, qwen_folder, use, precision="fp16", needs=())
        second.load(saved)
        stats = [one.step(batch_of(kit, adapter, 1), times(1.0)) for one in (first, second)]
        weights = dict(second.weights())
        same = all(torch.equal(tensor, weights[name]) for name, tensor in first.weights())
        return same, [item.metrics["loss_scale"] for item in stats]

    ((same, scales),) = on_ranks(work, 1, tmp_path)
    assert same
    assert scales == [(START / 2, 1.0)] * 2


def test_a_run_that_had_no_scale_begins_with_torchs(kit, qwen_folder, tmp_path):
    plain, adapter = build(kit, qwen_folder, "single", needs=())
    plain.save(tmp_path)
    strategy, _ = build(kit, qwen_folder, "single", precision="fp16", needs=())
    strategy.load(tmp_path)
    assert strategy.step(batch_of(kit, adapter, 1), times(1.0)).metrics["loss_scale"] == (START, 1.0)


def test_fp16_needs_full_precision_somewhere():
    with pytest.raises(ValidationError, match="precision fp16 needs master_weights"):
        Fsdp2Config(precision="fp16", master_weights=False)


@pytest.mark.gpu
@pytest.mark.parametrize("use", ["single", "ddp", "fsdp2"])
def test_a_gpu_computes_in_fp16(kit, qwen_folder, use):
    losses, weights, _ = steps(kit, qwen_folder, "single", list(range(8)), precision="fp32")
    found, own, _ = steps(kit, qwen_folder, use, list(range(8)), precision="fp16")
    assert largest(own, weights) <= 0.01
    assert [one["norm"] for one in found] == pytest.approx([one["norm"] for one in losses], rel=0.05)


def test_a_whole_objective_works_in_fp16(kit, qwen_folder):
    strategy, adapter = build(kit, qwen_folder, "single", precision="fp16")
    batch = batch_of(kit, adapter, 0)
    strategy.fill(batch, frozenset({"old_logprobs", "ref_logprobs", "entropy"}))
    stats = strategy.step(batch, replace(OBJECTIVE, kl_coef=0.2))
    assert stats.skipped is None and stats.grad_norm > 0
