"""ZeRO beyond the table of `test_strategies`: steps left out, half precision, offload, checkpoints, refusals."""

import shutil
from threading import Thread

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  here once, else on every rank, with torch's compiler
import pytest
import torch
from lightrft_core.data import LossOutput
from lightrft_core.errors import UserError
from lightrft_core.objective import Objective
from lightrft_core.sections import CriticSection, OptimSection
from lightrft_engines.config import TextConfig
from lightrft_engines.text import TextAdapter
from lightrft_engines.training import zero_engine
from lightrft_engines.training.config import DeepSpeedConfig
from lightrft_engines.training.deepspeed import DeepSpeedBackend
from lightrft_engines.training.single import start
from lightrft_engines.training.strategy import TorchStrategy
from lightrft_engines.training.zero_engine import join
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from tests.engines.ranks import on_ranks
from tests.engines.test_checkpoints import Written, exporter, folders_of, require_equal, step, weights_of
from tests.engines.test_strategies import OBJECTIVE, OPTIM, SHARES, batch_of, build, largest

CRITIC = CriticSection(lr=1e-2, eps=1e-3)
EVERY = frozenset({"old_logprobs", "ref_logprobs", "values"})
ALL_ROWS = list(range(8))


def two_steps(kit, folder, use, rows, **options):
    strategy, adapter = build(kit, folder, use, **options)
    for seed in range(2):
        step(kit, strategy, adapter, rows, seed)
    return strategy


@pytest.mark.parametrize(
    "options",
    [
        {"stage": 1},
        {"stage": 1, "precision": "bf16"},  # an optimizer class of its own
        {"stage": 2},
        {"stage": 3},
        {"stage": 3, "cpu_offload": True},
    ],
)
def test_a_gradient_that_is_not_finite_on_one_rank_leaves_weights_and_moments_alone(
    kit, qwen_folder, tmp_path, options
):
    for name in ("plain", "poisoned"):
        (tmp_path / name).mkdir()

    def work(rank):
        skipped = []
        for name, spoilt in (("plain", ()), ("poisoned", ("advantages_BT", "returns_BT"))):
            strategy, adapter = build(kit, qwen_folder, "deepspeed", critic=CRITIC, micro_batch_size=2, **options)
            step(kit, strategy, adapter, SHARES[2][rank], 0)
            for field in spoilt:  # the second one spoils the critic's gradient alone
                batch = batch_of(kit, adapter, 5).rows(SHARES[2][rank])
                strategy.fill(batch, EVERY)
                if rank == 1:
                    getattr(batch, field)[0] = torch.nan
                skipped.append(strategy.step(batch, OBJECTIVE).skipped)
            step(kit, strategy, adapter, SHARES[2][rank], 1)
            strategy.save(tmp_path / name)
        return skipped

    assert on_ranks(work, 2, tmp_path) == [["the gradient norm is nan"] * 2] * 2
    require_equal(tmp_path / "plain", tmp_path / "poisoned")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_step_without_any_row_is_that_of_one_process(kit, qwen_folder, tmp_path, stage):
    loss = lambda inputs: LossOutput(-inputs.logprobs_BT * inputs.advantages_BT)  # noqa: E731
    plain = Objective(loss, zero_without_advantage=True)

    def trained(use, rows, **options):
        strategy, adapter = build(kit, qwen_folder, use, **options)
        for factor in (1.0, 0.0):
            batch = batch_of(kit, adapter, 0).rows(rows)
            batch.advantages_BT *= factor
            strategy.step(batch, plain)
        return weights_of(strategy)

    expected = trained("single", ALL_ROWS)
    for found in on_ranks(lambda rank: trained("deepspeed", SHARES[2][rank], stage=stage), 2, tmp_path):
        assert largest(found, expected) <= 2e-6


def test_matrices_decay_and_vectors_do_not(kit, qwen_folder, tmp_path):
    optim = OptimSection(lr=1e-2, eps=1e-3, weight_decay=1.0)
    expected = weights_of(two_steps(kit, qwen_folder, "single", ALL_ROWS, optim=optim))
    without = weights_of(two_steps(kit, qwen_folder, "single", ALL_ROWS, optim=OPTIM))
    assert largest(without, expected) > 5e-3

    def work(rank):
        return weights_of(two_steps(kit, qwen_folder, "deepspeed", SHARES[2][rank], optim=optim, stage=3))

    for found in on_ranks(work, 2, tmp_path):
        assert largest(found, expected) <= 2e-6


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_head_is_whole_where_the_loss_uses_it(kit, tmp_path, is_tied):
    folder = kit.folder(tmp_path / "model", tie_word_embeddings=is_tied)
    expected = weights_of(two_steps(kit, folder, "single", ALL_ROWS))

    def work(rank):
        return weights_of(two_steps(kit, folder, "deepspeed", SHARES[2][rank], stage=3))

    for found in on_ranks(work, 2, tmp_path):
        assert found.keys() == expected.keys()
        assert largest(found, expected) <= 2e-6


def test_adapters_learn_on_weights_in_4_bits(kit, tmp_path):
    folder = kit.folder(tmp_path / "model", hidden_size=64, head_dim=16, intermediate_size=128, scale=1.0)
    lora = {"rank": 4, "alpha": 8, "load_in_4bit": True}
    expected = weights_of(two_steps(kit, folder, "single", ALL_ROWS, lora=lora))

    def work(rank):
        return weights_of(two_steps(kit, folder, "deepspeed", SHARES[2][rank], stage=2, lora=lora))

    for found in on_ranks(work, 2, tmp_path):
        assert largest(found, expected) <= 2e-6


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"stage": 1}, 1e-6),
        ({"stage": 2}, 1e-6),
        ({"stage": 3}, 5e-3),  # its linear layers add the bias in a step of its own
        ({"stage": 2, "grad_accum_dtype": "bf16"}, 5e-3),
        ({"stage": 3, "grad_accum_dtype": "bf16"}, 5e-3),
    ],
)
def test_half_precision_has_masters_in_fp32(kit, qwen_folder, tmp_path, options, tolerance):
    for name in ("alone", "ranks"):
        (tmp_path / name).mkdir()
    common = {"precision": "bf16", "micro_batch_size": 2}
    two_steps(kit, qwen_folder, "single", ALL_ROWS, **common).save(tmp_path / "alone")

    def work(rank):
        strategy = two_steps(kit, qwen_folder, "deepspeed", SHARES[2][rank], **common, **options)
        strategy.save(tmp_path / "ranks")
        return {tensor.dtype for _, tensor in strategy.weights()}

    assert on_ranks(work, 2, tmp_path) == [{torch.bfloat16}] * 2
    expected, found = (folders_of(tmp_path / name)["policy/weights"] for name in ("alone", "ranks"))
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) <= tolerance


def for_gpus(kit, folder, **options):
    """With options that the strategy refuses on a CPU, where they change nothing but the way."""
    config, setup = DeepSpeedConfig(**options), kit.setup(folder, optim=OPTIM, needs=frozenset({"ref_logprobs"}))
    setup.model = TextAdapter(TextConfig(path=str(folder)), setup)
    place = start(config, setup)
    join(place)
    return TorchStrategy(config, setup, DeepSpeedBackend(config, place)), setup.model


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("option", ["adam_offload", "overlap_comm"])
def test_what_is_for_gpus_changes_no_number(kit, qwen_folder, tmp_path, stage, option):
    def trained(strategy, adapter, rows):
        for seed in range(2):
            step(kit, strategy, adapter, rows, seed)
        return weights_of(strategy)

    def work(rank):
        built = for_gpus(kit, qwen_folder, stage=stage, micro_batch_size=1, **{option: True})
        return trained(*built, SHARES[2][rank])

    expected = trained(*build(kit, qwen_folder, "single"), ALL_ROWS)
    for found in on_ranks(work, 2, tmp_path):
        assert largest(found, expected) <= 2e-6


@pytest.mark.parametrize("stage", [2, 3])
def test_small_buckets_change_no_number(kit, qwen_folder, tmp_path, monkeypatch, stage):
    monkeypatch.setattr(zero_engine, "BUCKET", 1200)  # less than some matrices have
    expected = weights_of(two_steps(kit, qwen_folder, "single", ALL_ROWS))

    def work(rank):
        return weights_of(two_steps(kit, qwen_folder, "deepspeed", SHARES[2][rank], stage=stage, micro_batch_size=2))

    for found in on_ranks(work, 2, tmp_path):
        assert largest(found, expected) <= 2e-6


def test_a_renewed_reference_is_the_policy_of_its_moment(kit, qwen_folder, tmp_path):
    def work(rank):
        strategy, adapter = build(kit, qwen_folder, "deepspeed", stage=3, zpg=2)
        batch = batch_of(kit, adapter, 3)
        found = [strategy.logprobs(batch, role="reference").logprobs_BT]
        step(kit, strategy, adapter, SHARES[2][rank], 0)
        found.append(strategy.logprobs(batch, role="reference").logprobs_BT)
        strategy.refresh_reference()
        found += [strategy.logprobs(batch, role=role).logprobs_BT for role in ("reference", "policy")]
        step(kit, strategy, adapter, SHARES[2][rank], 1)
        found.append(strategy.logprobs(batch, role="reference").logprobs_BT)
        return [item.tolist() for item in found]

    for first, before, renewed, policy, later in on_ranks(work, 2, tmp_path):
        assert first == before != renewed == policy == later


@pytest.fixture(scope="module")
def by_four(kit, qwen_folder, tmp_path_factory) -> Written:
    """What four ranks wrote in stage 3."""
    return Written(kit, qwen_folder, tmp_path_factory.mktemp("four"), "deepspeed", 4, stage=3)


@pytest.fixture(scope="module")
def by_shards(kit, qwen_folder, tmp_path_factory) -> Written:
    """What two ranks wrote under fsdp2."""
    return Written(kit, qwen_folder, tmp_path_factory.mktemp("shards"), "fsdp2", 2)


@pytest.mark.parametrize(
    ("source", "use", "size", "options"),
    [
        ("by_four", "single", 1, {}),
        ("by_four", "fsdp2", 2, {}),
        ("by_four", "deepspeed", 2, {"stage": 1}),
        ("by_shards", "deepspeed", 2, {"stage": 2}),
        ("by_shards", "deepspeed", 1, {"stage": 3}),
        ("by_shards", "deepspeed", 4, {"stage": 3, "zpg": 2}),
    ],
)
def test_a_run_goes_on_under_another_strategy(kit, qwen_folder, tmp_path, request, source, use, size, options):
    written: Written = request.getfixturevalue(source)
    (tmp_path / "again").mkdir()
    shares = SHARES.get(size, (ALL_ROWS,))

    def work(rank):
        strategy, adapter = build(kit, qwen_folder, use, **written.options, **options)
        strategy.load(written.path)
        strategy.save(tmp_path / "again")
        step(kit, strategy, adapter, shares[rank], 1)
        return weights_of(strategy)

    for weights in on_ranks(work, size, tmp_path):
        assert largest(weights, written.later) <= 1e-6
    require_equal(written.path, tmp_path / "again")


def test_the_same_ranks_go_on_exactly(kit, qwen_folder, tmp_path, by_four):
    def work(rank):
        strategy, adapter = build(kit, qwen_folder, "deepspeed", stage=3, **by_four.options)
        step(kit, strategy, adapter, SHARES[4][rank], 7)  # to be undone
        strategy.load(by_four.path)
        step(kit, strategy, adapter, SHARES[4][rank], 1)
        return weights_of(strategy)

    assert on_ranks(work, 4, tmp_path) == [by_four.later] * 4


def test_every_rank_writes_a_share(by_four):
    files = sorted(file.name for file in (by_four.path / "policy/optimizer").iterdir())
    assert files == [f"share-{rank:05d}.safetensors" for rank in range(4)]
    sizes = [file.stat().st_size for file in (by_four.path / "policy/optimizer").iterdir()]
    assert max(sizes) < 0.5 * sum(sizes)


def test_a_missing_share_is_noticed(kit, qwen_folder, tmp_path, by_four):
    shutil.copytree(by_four.path, tmp_path / "checkpoint")
    (tmp_path / "checkpoint/critic/weights/share-00002.safetensors").unlink()

    def work(rank):
        strategy, _ = build(kit, qwen_folder, "deepspeed", stage=2, **by_four.options)
        before = weights_of(strategy)
        with pytest.raises(UserError, match="critic/weights belongs to another model: it has no "):
            strategy.load(tmp_path / "checkpoint")
        return weights_of(strategy) == before

    assert on_ranks(work, 2, tmp_path) == [True, True]


@pytest.mark.parametrize("stage", [2, 3])
def test_a_staged_copy_is_of_its_moment(kit, qwen_folder, tmp_path, stage):
    for name in ("direct", "staged", "alone"):
        (tmp_path / name).mkdir()

    def work(rank):
        strategy, adapter = build(kit, qwen_folder, "deepspeed", stage=stage, ema=True)
        step(kit, strategy, adapter, SHARES[2][rank], 0)
        strategy.save(tmp_path / "direct")
        trained, write_alone = weights_of(strategy), strategy.stage(export="hf", state=False)
        thread = Thread(target=strategy.stage(), args=(tmp_path / "staged",))
        thread.start()
        step(kit, strategy, adapter, SHARES[2][rank], 1)
        thread.join()
        write_alone(tmp_path / "alone")
        return trained

    trained = on_ranks(work, 2, tmp_path)[0]
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "alone/hf")
    assert largest({name: tensor.tolist() for name, tensor in exported.named_parameters()}, trained) == 0
    require_equal(tmp_path / "direct", tmp_path / "staged")


def test_exports_of_a_run_and_of_its_checkpoint_are_the_trained_model(kit, qwen_folder, tmp_path):
    (tmp_path / "checkpoint").mkdir()

    def work(rank):
        strategy = two_steps(kit, qwen_folder, "deepspeed", SHARES[2][rank], stage=3)
        strategy.save(tmp_path / "checkpoint")
        strategy.export(tmp_path / "direct")
        batch = batch_of(kit, build(kit, qwen_folder, "single")[1], 3)
        return strategy.logprobs(batch).logprobs_BT.tolist(), weights_of(strategy)

    logprobs, weights = on_ranks(work, 2, tmp_path)[0]
    later = exporter(kit, qwen_folder)
    later.load(tmp_path / "checkpoint")
    later.export(tmp_path / "later")
    _, adapter = build(kit, qwen_folder, "single")
    for name in ("direct", "later"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert largest({key: tensor.tolist() for key, tensor in model.named_parameters()}, weights) == 0
        with torch.no_grad():
            found = adapter.logprobs(model, batch_of(kit, adapter, 3), layout="padded").logprobs_BT
        assert found.tolist() == [pytest.approx(row, abs=1e-5) for row in logprobs]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": 3, "zpg": 2}, r"strategy\.zpg: 2 ranks cannot keep a second copy .* does not divide the 1 ranks"),
        ({"grad_accum_dtype": "bf16"}, r"strategy\.grad_accum_dtype: the model computes in fp32"),
        ({"adam_offload": True}, r"strategy\.adam_offload: has no effect: the model is on the CPU"),
        ({"overlap_comm": True}, r"strategy\.overlap_comm: has no effect: the model is on the CPU"),
    ],
)
def test_what_cannot_be_is_refused(kit, qwen_folder, options, message):
    with pytest.raises(UserError, match=message):
        build(kit, qwen_folder, "deepspeed", **options)


def test_weights_are_not_kept_with_activations():
    with pytest.raises(ValidationError, match="activation_offload would keep the weights that stage 3 gathers too"):
        DeepSpeedConfig(stage=3, activation_offload=True)


def test_options_of_stage_3_do_nothing_in_the_others():
    assert {"cpu_offload", "zpg"} <= DeepSpeedConfig(stage=2).idle().keys()
    assert "strategy.stage is 1" in DeepSpeedConfig(stage=1, zpg=2).idle()["zpg"].reason
    assert DeepSpeedConfig(stage=3, cpu_offload=True).idle()["adam_offload"].because == "cpu_offload"
    assert not {"cpu_offload", "zpg", "adam_offload"} & DeepSpeedConfig(stage=3).idle().keys()
