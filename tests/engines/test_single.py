"""The `single` strategy: one update whatever the cut, real skips, exact resume."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightrft_core.data import Batch, LossInputs, LossOutput
from lightrft_core.errors import EnvironmentUnfit, UserError
from lightrft_core.objective import Objective
from lightrft_core.protocols import Setup
from lightrft_core.sections import OptimSection, RunSection
from lightrft_engines import head_loss
from lightrft_engines.config import TextConfig
from lightrft_engines.text import TextAdapter
from lightrft_engines.training.config import SingleConfig
from lightrft_engines.training.single import SingleStrategy
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def clip_loss(inputs: LossInputs) -> LossOutput:
    ratio = (inputs.logprobs_BT - inputs.old_logprobs_BT).exp()
    gain = torch.minimum(ratio * inputs.advantages_BT, ratio.clamp(0.8, 1.2) * inputs.advantages_BT)
    return LossOutput(-gain, {"ratio": ratio.detach()})


def squared_gap(logprobs_BT, ref_logprobs_BT):
    return (logprobs_BT - ref_logprobs_BT) ** 2


OBJECTIVE = Objective(clip_loss)


@pytest.fixture
def build(kit, qwen_folder):
    """A strategy on the tiny Qwen2; keyword arguments are `SingleConfig` options, `setup` those of `Setup`."""

    def make(*, setup=None, folder=qwen_folder, **options) -> SingleStrategy:
        built: Setup = kit.setup(folder, **(setup or {}))
        built.model = TextAdapter(TextConfig(path=str(folder)), built)
        return SingleStrategy(SingleConfig(**options), built)

    return make


@pytest.fixture
def batch(kit, qwen_folder) -> Batch:
    return make_batch(kit, qwen_folder)


def make_batch(kit, folder, seed: int = 0) -> Batch:
    batch = TextAdapter(TextConfig(path=str(folder)), kit.setup(folder)).collate(kit.groups(seed))
    draw = torch.Generator().manual_seed(seed + 1)
    batch.advantages_BT = torch.randn(len(batch), 1, generator=draw).expand(batch.mask_BT.shape).contiguous()
    return batch


def parameters(strategy: SingleStrategy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in strategy.weights()}


def distance(found, expected) -> float:
    return max(float((found[name] - expected[name]).detach().abs().max()) for name in expected)


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum_norm"])
def test_the_update_does_not_depend_on_the_cut(build, batch, aggregation):
    objective = replace(OBJECTIVE, aggregation=aggregation, token_budget=9.0)
    optim = OptimSection(
        lr=1e-2, eps=1e-3
    )  # a large eps: Adam otherwise turns rounding noise of zeros into whole steps
    whole = build(setup={"optim": optim}, max_tokens_per_micro_batch=10_000)
    stats = whole.step(batch, objective)
    expected = parameters(whole)
    for options in (
        {"micro_batch_size": 1},
        {"micro_batch_size": 3},
        {"max_tokens_per_micro_batch": 16},
        {"max_tokens_per_micro_batch": 16, "packing": False},
        {"micro_batch_size": 2, "packing": False},
        {"logprob_chunk": 2, "checkpointing": True},
    ):
        other = build(setup={"optim": optim}, **options)
        again = other.step(batch, objective)
        assert distance(parameters(other), expected) <= 1e-6, options
        assert again.grad_norm == pytest.approx(stats.grad_norm, rel=1e-5)
        for name, (total, count) in stats.metrics.items():
            assert again.metrics[name] == (pytest.approx(total, rel=1e-4, abs=1e-6), pytest.approx(count)), name


def test_the_update_does_not_depend_on_how_many_rows_go_through_the_head_together(build, batch, monkeypatch):
    objective = replace(OBJECTIVE, entropy_coef=0.01)
    optim = OptimSection(lr=1e-2, eps=1e-3)
    whole = build(setup={"optim": optim})
    stats = whole.step(batch, objective)
    monkeypatch.setattr(head_loss, "FREE_BYTES", 0)
    for enough in (1, 6):
        monkeypatch.setattr(head_loss, "ENOUGH_TOKENS", enough)
        other = build(setup={"optim": optim})
        again = other.step(batch, objective)
        assert distance(parameters(other), parameters(whole)) <= 1e-6
        assert again.grad_norm == pytest.approx(stats.grad_norm, rel=1e-5)
        for name, (total, count) in stats.metrics.items():
            assert again.metrics[name] == (pytest.approx(total, rel=1e-4, abs=1e-6), pytest.approx(count)), name


def test_the_first_step_equals_adamw_on_gradients_of_a_plain_loop(build, batch, qwen_folder):
    strategy = build(setup={"optim": OptimSection(lr=1e-3, weight_decay=0.1, max_grad_norm=0.5, eps=1e-3)})
    model = AutoModelForCausalLM.from_pretrained(qwen_folder)
    loss = 0.0
    for row, prompt in enumerate(batch.prompt_token_ids):
        length = int(batch.lengths_B[row])
        ids = torch.tensor([[*prompt, *batch.completion_ids_BT[row, :length].tolist()]])
        logp = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        own = logp.gather(-1, ids[0, len(prompt) :, None])[:, 0]
        loss = loss - (own * batch.advantages_BT[row, 0]).mean() / len(batch)  # the ratio's gradient at 1
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    kept = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.95),
        eps=1e-3,
    ).step()
    stats = strategy.step(batch, OBJECTIVE)
    assert stats.grad_norm == pytest.approx(float(norm), rel=1e-4)
    assert distance(parameters(strategy), dict(model.named_parameters())) <= 1e-6


def test_zero_means_no_clipping_and_the_norm_is_reported_unclipped(build, batch):
    optim = {"lr": 1e-2, "eps": 1.0}  # with such an eps the update is nearly linear in the gradient
    free = build(setup={"optim": OptimSection(max_grad_norm=0, **optim)})
    tight = build(setup={"optim": OptimSection(max_grad_norm=1e-3, **optim)})
    start = parameters(free)
    norms = [strategy.step(batch, OBJECTIVE).grad_norm for strategy in (free, tight)]
    assert norms[0] == norms[1] > 0.01
    assert distance(parameters(free), start) > 5 * distance(parameters(tight), start) > 0


def test_a_step_on_non_finite_gradients_changes_nothing_and_says_so(build, batch):
    strategy = build()
    strategy.step(batch, OBJECTIVE)
    before, rate = parameters(strategy), strategy.step_rate
    poisoned = replace(batch, advantages_BT=batch.advantages_BT.clone())
    poisoned.advantages_BT[2, 0] = float("nan")
    stats = strategy.step(poisoned, OBJECTIVE)
    assert stats.skipped == "the gradient norm is nan"
    assert distance(parameters(strategy), before) == 0
    assert strategy.step_rate == rate
    after = strategy.step(batch, OBJECTIVE)
    clean = build()
    clean.step(batch, OBJECTIVE)
    assert after.skipped is None
    assert clean.step(batch, OBJECTIVE).lr == after.lr
    assert distance(parameters(strategy), parameters(clean)) == 0


def test_rows_without_advantage_are_left_out_but_counted(build, batch):
    batch.advantages_BT[:4] = 0
    optim = OptimSection(lr=1e-2, eps=1e-3)
    plain, quick = build(setup={"optim": optim}), build(setup={"optim": optim})
    full = plain.step(batch, OBJECTIVE)
    short = quick.step(batch, replace(OBJECTIVE, zero_without_advantage=True))
    assert distance(parameters(plain), parameters(quick)) <= 1e-6
    assert short.metrics["ratio"][1] < full.metrics["ratio"][1]
    for name in ("policy_loss", "loss"):
        assert short.metrics[name] == (pytest.approx(full.metrics[name][0], abs=1e-7), pytest.approx(1.0))


def test_kl_in_the_loss_keeps_rows_without_advantage(build, batch):
    batch.advantages_BT[:] = 0
    batch.ref_logprobs_BT = torch.zeros(batch.mask_BT.shape)
    objective = Objective(clip_loss, kl=squared_gap, kl_coef=0.1, zero_without_advantage=True)
    assert build().step(batch, objective).grad_norm > 0


def test_a_batch_that_trains_nothing_has_a_zero_gradient(build, batch):
    batch.mask_BT[:] = False
    stats = build().step(batch, OBJECTIVE)
    assert stats.grad_norm == 0
    assert stats.skipped is None


def test_missing_old_logprobs_are_the_policys_own(build, batch):
    strategy = build()
    strategy.fill(batch, frozenset({"old_logprobs"}))
    filled = parameters_after(strategy, batch)
    batch.old_logprobs_BT = None
    assert distance(parameters_after(build(), batch), filled) <= 1e-6


def parameters_after(strategy, batch):
    stats = strategy.step(batch, OBJECTIVE)
    total, count = stats.metrics["ratio"]
    assert total / count == pytest.approx(1.0, abs=1e-5)
    return parameters(strategy)


def test_fill_gives_old_reference_and_entropy_of_trained_rows(build, batch):
    strategy = build(setup={"needs": frozenset({"ref_logprobs"})}, logprob_micro_batch_size=3)
    batch.mask_BT[1] = False
    strategy.fill(batch, frozenset({"old_logprobs", "ref_logprobs", "entropy"}))
    exact = strategy.logprobs(batch, layout="padded")
    trained = batch.mask_BT.any(-1)
    assert torch.allclose(batch.old_logprobs_BT[trained], exact.logprobs_BT[trained], atol=1e-5)
    assert torch.allclose(batch.ref_logprobs_BT[trained], exact.logprobs_BT[trained], atol=1e-5)
    assert torch.allclose(batch.entropy_BT[trained], exact.entropy_BT[trained], atol=1e-5)
    assert (batch.old_logprobs_BT[1] == 0).all()


def test_the_reference_stays_where_it_was(build, batch):
    strategy = build(setup={"needs": frozenset({"ref_logprobs"})})
    before = strategy.logprobs(batch, role="reference").logprobs_BT
    strategy.step(batch, OBJECTIVE)
    assert torch.equal(strategy.logprobs(batch, role="reference").logprobs_BT, before)
    assert not torch.allclose(strategy.logprobs(batch).logprobs_BT, before, atol=1e-3)


def test_a_reference_that_the_run_does_not_need_is_not_loaded(build, batch):
    with pytest.raises(ValueError, match="no role 'reference'; this run has policy"):
        build().logprobs(batch, role="reference")


def test_the_gap_to_the_engine_is_measured(build, batch):
    strategy = build()
    own = strategy.logprobs(batch).logprobs_BT
    batch.engine_logprobs_BT = torch.where(batch.mask_BT, own + 0.25, 0.0)
    batch.engine_logprobs_BT[0, 0] -= 1.25
    gap = strategy.step(batch, OBJECTIVE).gap
    tokens = int(batch.mask_BT.sum())
    assert gap.tokens == tokens
    assert gap.abs_max == pytest.approx(1.0, abs=1e-4)
    assert gap.mean == pytest.approx((0.25 * (tokens - 1) + 1.0) / tokens, abs=1e-5)
    assert gap.ratio_max == pytest.approx(math.e, abs=1e-3)
    assert gap.error == pytest.approx((math.exp(0.25) * (tokens - 1) + math.e) / tokens, abs=1e-4)
    assert gap.quantile(0.5) == pytest.approx(0.25, rel=0.011)


def test_tokens_without_a_log_probability_of_the_engine_are_not_measured(build, batch):
    strategy = build()
    batch.engine_logprobs_BT = strategy.logprobs(batch).logprobs_BT
    batch.engine_logprobs_BT[0] = float("nan")
    assert strategy.step(batch, OBJECTIVE).gap.tokens == int(batch.mask_BT[1:].sum())
    batch.engine_logprobs_BT[:] = float("nan")
    assert strategy.step(batch, OBJECTIVE).gap is None


def test_a_gap_over_the_limit_leaves_the_update_out(build, batch):
    strategy = build()
    batch.engine_logprobs_BT = strategy.logprobs(batch).logprobs_BT - 0.25
    before = parameters(strategy)
    stats = strategy.step(batch, replace(OBJECTIVE, max_gap=0.2))
    assert stats.skipped == "the gap between engine and trainer is 0.25 nats per token"
    assert distance(parameters(strategy), before) == 0.0
    assert strategy.step(batch, replace(OBJECTIVE, max_gap=0.3)).skipped is None


def test_the_gap_does_not_depend_on_the_cut_nor_on_when_it_is_measured(build, batch):
    batch.engine_logprobs_BT = build().logprobs(batch).logprobs_BT + torch.linspace(-1, 1, batch.mask_BT.numel()).view(
        batch.mask_BT.shape
    )
    expected = build(max_tokens_per_micro_batch=10_000).step(batch, OBJECTIVE).gap
    assert build(micro_batch_size=1).step(batch, OBJECTIVE).gap.metrics() == pytest.approx(expected.metrics(), rel=1e-4)
    strategy = build()
    assert strategy.gap(batch) is None
    strategy.fill(batch, frozenset({"old_logprobs"}))
    assert strategy.gap(batch).metrics() == pytest.approx(expected.metrics(), rel=1e-4)


def test_an_entropy_bonus_changes_the_update(build, batch):
    plain, bonus = build(), build()
    plain.step(batch, OBJECTIVE)
    stats = bonus.step(batch, replace(OBJECTIVE, entropy_coef=0.1))
    assert stats.metrics["entropy"][0] > 0
    assert distance(parameters(plain), parameters(bonus)) > 1e-4


def test_bf16_keeps_fp32_masters_so_that_tiny_steps_add_up(build, batch, tmp_path):
    strategy = build(setup={"optim": OptimSection(lr=1e-5)}, precision="bf16")
    assert strategy.policy.dtype == torch.bfloat16
    before = parameters(strategy)
    for _ in range(3):
        strategy.step(batch, OBJECTIVE)
    strategy.save(tmp_path)
    masters = load_file(tmp_path / "policy/weights/whole.safetensors")
    assert {tensor.dtype for tensor in masters.values()} == {torch.float32}
    assert 0 < distance(masters, {name: tensor.float() for name, tensor in before.items()}) <= 1e-4
    assert distance(parameters(strategy), {name: tensor.bfloat16() for name, tensor in masters.items()}) == 0


def test_a_resumed_run_continues_bit_for_bit(build, kit, qwen_folder, tmp_path):
    optim = OptimSection(lr=1e-2, schedule="cosine_with_min_lr", warmup_steps=2, weight_decay=0.01)
    batches = [make_batch(kit, qwen_folder, seed) for seed in range(4)]
    whole = build(setup={"optim": optim})
    for batch in batches[:2]:
        whole.step(batch, OBJECTIVE)
    whole.save(tmp_path)
    drawn = torch.rand(3)
    expected = [whole.step(batch, OBJECTIVE) for batch in batches[2:]]
    resumed = build(setup={"optim": optim})
    resumed.load(tmp_path)
    assert torch.equal(torch.rand(3), drawn)
    assert [resumed.step(batch, OBJECTIVE) for batch in batches[2:]] == expected
    assert distance(parameters(resumed), parameters(whole)) == 0


def test_a_checkpoint_before_the_first_step_resumes_too(build, batch, tmp_path):
    first, second = build(), build()
    first.save(tmp_path)
    second.load(tmp_path)
    first.step(batch, OBJECTIVE)
    second.step(batch, OBJECTIVE)
    assert distance(parameters(first), parameters(second)) == 0


def test_files_are_safetensors_and_json(build, tmp_path):
    build().save(tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == [
        "policy/optimizer/whole.safetensors",
        "policy/weights/whole.safetensors",
        "random-00000.safetensors",
        "strategy.json",
    ]
    assert json.loads((tmp_path / "strategy.json").read_text())["steps"] == {"policy": 0}


def test_another_models_checkpoint_is_refused_by_name_and_nothing_changes(build, kit, tmp_path):
    other = build(folder=kit.folder(tmp_path / "wide", intermediate_size=56))
    (tmp_path / "ckpt").mkdir()
    other.save(tmp_path / "ckpt")
    strategy = build()
    before = parameters(strategy)
    with pytest.raises(UserError, match=r"another model: model\.layers\.0\.mlp\.\S+ has shape \[.*56.*here it is"):
        strategy.load(tmp_path / "ckpt")
    assert distance(parameters(strategy), before) == 0


def test_a_failed_write_is_an_os_error(build):
    with pytest.raises(OSError, match="No such file"):
        build().save(Path("/proc/nowhere"))


def test_tied_weights_are_named_once(build, kit, tmp_path):
    folder = kit.folder(tmp_path / "tied", tie_word_embeddings=True)
    names = [name for name, _ in build(folder=folder).weights()]
    assert "lm_head.weight" not in names
    assert len(names) == len(set(names))


def test_fingerprints_change_with_an_update_and_only_then(build, batch):
    strategy = build()
    before = strategy.fingerprint()
    assert len(before) == 8
    assert strategy.fingerprint() == before
    strategy.step(batch, OBJECTIVE)
    assert all(value != before[name] for name, value in strategy.fingerprint().items())


def test_the_export_is_the_trained_model(build, batch, tmp_path):
    strategy = build()
    strategy.step(batch, OBJECTIVE)
    strategy.export(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(12)[None]
    assert torch.allclose(again(ids).logits, strategy.policy(ids).logits, atol=1e-5)


def test_checkpointing_recomputes_only_during_a_step_and_without_dropout(build, batch, kit, tmp_path):
    folder = kit.folder(tmp_path / "drop", attention_dropout=0.5)
    plain, saving = build(folder=folder), build(folder=folder, checkpointing=True)
    plain.step(batch, OBJECTIVE)
    saving.step(batch, OBJECTIVE)
    assert distance(parameters(plain), parameters(saving)) <= 1e-6
    assert not any(module.training for module in saving.policy.modules())


def test_a_gpu_that_is_not_there_is_an_unfit_environment(build):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(EnvironmentUnfit, match=r"strategy\.device: device cuda"):
        build(device="cuda")


def test_torch_draws_from_the_runs_seed(build):
    build(setup={"run": RunSection(seed=3)})
    first = torch.rand(4)
    build(setup={"run": RunSection(seed=3)})
    assert torch.equal(torch.rand(4), first)
    build(setup={"run": RunSection(seed=4)})
    assert not torch.equal(torch.rand(4), first)
