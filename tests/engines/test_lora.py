"""LoRA: adapters learn, the merged model is served, the base is the reference, and both kinds of export load again."""

import shutil
import sys

import pytest
import torch
from lightrft_core.data import seed_for
from lightrft_core.errors import UserError
from lightrft_core.sections import CriticSection, OptimSection
from lightrft_engines.config import LoraSection, TextConfig
from lightrft_engines.embedded import EmbeddedEngine
from lightrft_engines.embedded_config import EmbeddedConfig
from lightrft_engines.hub import digest
from lightrft_engines.lora import add_adapters
from lightrft_engines.text import TextAdapter
from lightrft_engines.training.merging import Merging
from pydantic import ValidationError
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig

from tests.engines.ranks import on_ranks
from tests.engines.test_strategies import OBJECTIVE, SHARES, batch_of, build, largest, steps

LORA = {"rank": 4, "alpha": 8}
QLORA = {**LORA, "load_in_4bit": True}
EVERY = frozenset({"old_logprobs", "ref_logprobs"})


@pytest.fixture(scope="module")
def wide_folder(kit, tmp_path_factory):
    """A model whose layers are large enough to be packed; it has generation settings of its own."""
    path = kit.folder(
        tmp_path_factory.mktemp("model") / "wide", hidden_size=64, head_dim=16, intermediate_size=128, scale=1.0
    )
    GenerationConfig(eos_token_id=[0, 5], temperature=0.7, do_sample=True).save_pretrained(path)
    return path


def step(kit, strategy, adapter, seed=0):
    batch = batch_of(kit, adapter, seed)
    strategy.fill(batch, EVERY)
    return strategy.step(batch, OBJECTIVE)


def trained(kit, folder, lora=LORA, use="single", **options):
    strategy, adapter = build(kit, folder, use, lora=lora, **options)
    for seed in range(2):
        step(kit, strategy, adapter, seed)
    return strategy, adapter


def logits_of(path, **options):
    module = AutoModelForCausalLM.from_pretrained(path, **options).eval()
    with torch.no_grad():
        return module(torch.arange(36).view(3, 12)).logits


def plain_logprobs(kit, folder, batch, weights=None):
    """What the plain model says, with the folder's own weights or with others."""
    adapter = TextAdapter(TextConfig(path=str(folder)), kit.setup(folder))
    module = adapter.load("policy")
    if weights is not None:
        module.load_state_dict(weights, strict=not module.config.tie_word_embeddings)
    with torch.no_grad():
        return adapter.logprobs(module, batch).logprobs_BT


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("qwen2", {"tie_word_embeddings": True}), ("qwen2", {"tie_word_embeddings": False}), ("gpt2", {})],
)
def test_what_is_served_are_the_plain_models_weights_merged_as_peft_merges(kit, kind, changes):
    from peft import LoraConfig, get_peft_model

    section = LoraSection(**LORA, target_modules="c_attn" if kind == "gpt2" else ("q_proj", "down_proj"))
    module, theirs = kit.model(kind, **changes), kit.model(kind, **changes)
    plain = [name for name, _ in module.named_parameters()]
    add_adapters(module, section, path="base", seed=1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(section.target_modules), fan_in_fan_out=kind == "gpt2")
    peft_model = get_peft_model(theirs, config)
    values = {name: torch.randn_like(item) for name, item in module.named_parameters() if item.requires_grad}
    with torch.no_grad():
        for named, prefix in ((module, ""), (peft_model, "base_model.model.")):
            for name, value in values.items():
                named.get_parameter(prefix + name).copy_(value)
    merging, expected = Merging(module), dict(peft_model.merge_and_unload().named_parameters())
    assert merging.names() == plain == list(expected)
    for name in plain:
        merged = merging.merged(name, module.get_parameter)
        assert torch.allclose(merged, expected[name], rtol=1e-5, atol=1e-6), name


def test_only_adapters_learn(kit, qwen_folder):
    strategy, adapter = build(kit, qwen_folder, "single", lora=LORA)
    before = dict(strategy.weights())
    assert all(torch.equal(before[name], item) for name, item in adapter.load("policy").named_parameters())
    step(kit, strategy, adapter)
    changed = {name for name, tensor in strategy.weights() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "proj.weight" in name}


def test_every_rank_draws_the_same_adapters_and_every_seed_others(kit, qwen_folder):
    def first(seed):
        module = kit.model("qwen2")
        add_adapters(module, LoraSection(**LORA), path="base", seed=seed)
        return module.model.layers[0].mlp.up_proj.lora_A["default"].weight

    assert torch.equal(first(seed_for(1, "lora")), first(seed_for(1, "lora")))
    assert not torch.equal(first(1), first(2))


@pytest.mark.parametrize(("use", "lora"), [("single", LORA), ("single", QLORA), ("fsdp2", LORA)])
def test_an_engine_serves_a_merged_copy(kit, wide_folder, tmp_path, use, lora):
    def work(rank):
        strategy, adapter = build(kit, wide_folder, use, lora=lora)
        setup = kit.setup(wide_folder)
        setup.model, setup.strategy = adapter, strategy
        assert strategy.policy is None
        engine = EmbeddedEngine(EmbeddedConfig(), setup)
        at_start = engine.fingerprint(list(strategy.fingerprint())) == strategy.fingerprint()
        step(kit, strategy, adapter)
        engine.update_weights(strategy.weights, 1)
        batch = batch_of(kit, adapter, 3)
        with torch.no_grad():
            served = adapter.logprobs(engine.module, batch).logprobs_BT
        gap = float((served - strategy.logprobs(batch).logprobs_BT).abs().max())
        return at_start, engine.fingerprint(list(strategy.fingerprint())) == strategy.fingerprint(), gap

    ((at_start, after_step, gap),) = on_ranks(work, 1, tmp_path)
    assert at_start and after_step
    assert gap <= 1e-4


@pytest.mark.parametrize("use", ["single", "ddp", "fsdp2"])
def test_the_reference_is_the_base_model_without_a_copy(kit, qwen_folder, tmp_path, use):
    def work(rank):
        strategy, adapter = build(kit, qwen_folder, use, lora=LORA)
        batch = batch_of(kit, adapter, 3)
        found = [strategy.logprobs(batch, role="reference").logprobs_BT]  # before the first pass with gradient
        step(kit, strategy, adapter)
        found.append(strategy.logprobs(batch, role="reference").logprobs_BT)
        gap = float((strategy.logprobs(batch).logprobs_BT - found[0]).abs().max())
        base = plain_logprobs(kit, qwen_folder, batch)
        return max(float((one - base).abs().max()) for one in found), gap

    ((same, gap),) = on_ranks(work, 1, tmp_path)
    assert same <= 1e-5
    assert gap > 1e-3


@pytest.mark.parametrize("use", ["single", "fsdp2"])
def test_a_refreshed_reference_is_the_policy_of_then_and_survives_a_checkpoint(kit, qwen_folder, tmp_path, use):
    def work(rank):
        first, adapter = trained(kit, qwen_folder, use=use)
        batch = batch_of(kit, adapter, 3)
        of_then = first.logprobs(batch).logprobs_BT
        first.refresh_reference()
        step(kit, first, adapter, 2)
        of_now = first.logprobs(batch).logprobs_BT
        saved = tmp_path / "saved"
        saved.mkdir()
        first.save(saved)
        second, _ = build(kit, qwen_folder, use, lora=LORA)
        second.load(saved)
        found = [item.logprobs(batch, role="reference").logprobs_BT for item in (first, second)]
        policies = [item.logprobs(batch).logprobs_BT for item in (first, second)]
        kept = all(torch.equal(one, of_then) for one in found) and all(torch.equal(one, of_now) for one in policies)
        start, _ = build(kit, qwen_folder, use, lora=LORA)
        start.refresh_reference()
        (tmp_path / "start").mkdir()
        trained(kit, qwen_folder, use=use)[0].save(tmp_path / "start")
        start.load(tmp_path / "start")
        base = plain_logprobs(kit, qwen_folder, batch)
        back = float((start.logprobs(batch, role="reference").logprobs_BT - base).abs().max())
        return kept, back

    ((kept, back),) = on_ranks(work, 1, tmp_path)
    assert kept
    assert back <= 1e-5


@pytest.mark.parametrize("lora", [LORA, QLORA])
def test_a_run_resumes_exactly_from_its_adapters_alone(kit, wide_folder, tmp_path, lora):
    first, adapter = trained(kit, wide_folder, lora)
    first.save(tmp_path)
    with safe_open(tmp_path / "policy/weights/whole.safetensors", "pt") as file:
        assert {".lora_A." in name or ".lora_B." in name for name in file.keys()} == {True}  # noqa: SIM118
    second, _ = build(kit, wide_folder, "single", lora=lora)
    second.load(tmp_path)
    for strategy in (first, second):
        step(kit, strategy, adapter, 5)
    weights = dict(second.weights())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in first.weights())


def test_a_sharded_checkpoint_is_read_by_one_process_and_the_other_way_round(kit, qwen_folder, tmp_path):
    alone, adapter = trained(kit, qwen_folder)
    (tmp_path / "whole").mkdir()
    alone.save(tmp_path / "whole")
    (tmp_path / "shards").mkdir()

    def work(rank):
        strategy, _ = build(kit, qwen_folder, "fsdp2", lora=LORA)
        strategy.load(tmp_path / "whole")
        strategy.save(tmp_path / "shards")
        return {name: tensor.tolist() for name, tensor in strategy.weights()}

    for found in on_ranks(work, 2, tmp_path):
        assert largest(found, {name: tensor.tolist() for name, tensor in alone.weights()}) <= 1e-6
    again, _ = build(kit, qwen_folder, "single", lora=LORA)
    again.load(tmp_path / "shards")
    step(kit, alone, adapter, 4)
    step(kit, again, adapter, 4)
    weights = dict(again.weights())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in alone.weights())


def test_adapters_of_another_base_model_are_refused(kit, qwen_folder, tmp_path):
    first, _ = build(kit, qwen_folder, "single", lora=LORA)
    (tmp_path / "saved").mkdir()
    first.save(tmp_path / "saved")
    other, _ = build(kit, kit.folder(tmp_path / "other", seed=1), "single", lora=LORA)
    with pytest.raises(UserError, match=r"trained on another base model than the one at model\.path"):
        other.load(tmp_path / "saved")
    copied, _ = build(kit, shutil.copytree(qwen_folder, tmp_path / "elsewhere"), "single", lora=LORA)
    copied.load(tmp_path / "saved")


def test_a_checkpoint_of_all_weights_is_no_checkpoint_of_adapters(kit, qwen_folder, tmp_path):
    whole, _ = build(kit, qwen_folder, "single")
    whole.save(tmp_path)
    strategy, _ = build(kit, qwen_folder, "single", lora=LORA)
    with pytest.raises(UserError, match="policy/weights belongs to another model"):
        strategy.load(tmp_path)


def test_drawing_adapters_leaves_other_draws_alone(kit):
    module = kit.model("qwen2")
    state = torch.get_rng_state()
    add_adapters(module, LoraSection(**LORA), path="base", seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_digest_reads_sharded_files_too(kit, tmp_path):
    model = kit.model("qwen2")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    before = digest(TextConfig(path=str(tmp_path)))
    assert before == digest(TextConfig(path=str(tmp_path)))
    file = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert before != digest(TextConfig(path=str(tmp_path)))


@pytest.mark.parametrize(("use", "lora"), [("single", LORA), ("single", QLORA), ("fsdp2", LORA)])
def test_exports_give_the_trainers_logits(kit, wide_folder, tmp_path, use, lora):
    from peft import PeftModel

    def work(rank):
        strategy, adapter = trained(kit, wide_folder, lora, use)
        strategy.export(tmp_path / "merged")
        strategy.export_adapters(tmp_path / "adapters")
        batch = batch_of(kit, adapter, 3)
        exported = plain_logprobs(kit, tmp_path / "merged", batch)
        return float((strategy.logprobs(batch).logprobs_BT - exported).abs().max())

    assert on_ranks(work, 1, tmp_path)[0] <= 1e-4
    settings = GenerationConfig.from_pretrained(tmp_path / "merged")
    assert (settings.eos_token_id, settings.temperature) == ([0, 5], 0.7)
    assert "quantization_config" not in (tmp_path / "merged/config.json").read_text()
    names = {file.name for file in (tmp_path / "adapters").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    if lora is LORA:
        module = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(wide_folder), tmp_path / "adapters"
        ).eval()
        with torch.no_grad():
            found = module(torch.arange(36).view(3, 12)).logits
        assert torch.allclose(found, logits_of(tmp_path / "merged"), atol=1e-5)


def test_an_export_says_in_which_numbers_it_is(kit, tmp_path):
    folder = kit.folder(tmp_path / "model", dtype=torch.bfloat16)
    strategy, _ = trained(kit, folder)
    strategy.export(tmp_path / "merged")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.float32


def test_there_are_no_adapters_to_export_where_all_weights_train(kit, qwen_folder, tmp_path):
    strategy, _ = build(kit, qwen_folder, "single")
    with pytest.raises(UserError, match="this run trains all weights"):
        strategy.export_adapters(tmp_path)


def test_four_bits_of_weights_in_bf16_unpack_to_what_the_model_computes_in(kit, tmp_path):
    sizes = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128, "scale": 1.0}
    folder = kit.folder(tmp_path / "model", dtype=torch.bfloat16, **sizes)
    strategy, adapter = trained(kit, folder, QLORA)
    strategy.export(tmp_path / "merged")
    batch = batch_of(kit, adapter, 3)
    exported = plain_logprobs(kit, tmp_path / "merged", batch)
    assert torch.allclose(strategy.logprobs(batch).logprobs_BT, exported, atol=1e-4)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.02), ("fp16", 0.002)])
def test_four_bits_are_what_trains_and_what_is_served(kit, wide_folder, precision, tolerance):
    strategy, adapter = trained(kit, wide_folder, QLORA, precision=precision)
    module = adapter.load_lora()
    assert module.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.uint8
    batch, weights = batch_of(kit, adapter, 3), dict(strategy.weights())
    own = strategy.logprobs(batch).logprobs_BT
    assert torch.allclose(own, plain_logprobs(kit, wide_folder, batch, weights), atol=tolerance)
    base = adapter.load("policy").model.layers[0].mlp.up_proj.weight
    assert not torch.allclose(weights["model.layers.0.mlp.up_proj.weight"].float(), base, atol=1e-3)


@pytest.mark.parametrize("use", ["single", "ddp"])
def test_ranks_train_adapters_of_4_bit_weights_as_one_process(kit, wide_folder, tmp_path, use):
    losses, weights, _ = steps(kit, wide_folder, "single", list(range(8)), lora=QLORA)
    for found, own, _ in on_ranks(lambda rank: steps(kit, wide_folder, use, SHARES[2][rank], lora=QLORA), 2, tmp_path):
        assert largest(own, weights) <= 2e-5
        assert found == [pytest.approx(one, rel=1e-3, abs=1e-4) for one in losses]


def test_dropout_acts_where_gradients_are_taken_and_nowhere_else(kit, qwen_folder):
    lora = {**LORA, "dropout": 0.5}
    plain, adapter = build(kit, qwen_folder, "single", lora=LORA)
    dropping, _ = build(kit, qwen_folder, "single", lora=lora)
    again, _ = build(kit, qwen_folder, "single", lora=lora, checkpointing=True)
    norms = []
    for strategy in (plain, dropping, again):
        torch.manual_seed(0)
        step(kit, strategy, adapter)
        norms.append(step(kit, strategy, adapter, 1).grad_norm)
    assert norms[0] != pytest.approx(norms[1], rel=1e-3)
    assert norms[1] == pytest.approx(norms[2], rel=1e-5)  # what is computed again drops the same
    batch = batch_of(kit, adapter, 3)
    assert torch.equal(dropping.logprobs(batch).logprobs_BT, dropping.logprobs(batch).logprobs_BT)


def test_frozen_shards_are_kept_in_what_they_compute_in(kit, qwen_folder, tmp_path):
    def work(rank):
        strategy, _ = trained(kit, qwen_folder, use="fsdp2", precision="bf16")
        kinds = {(item.requires_grad, str(item.dtype)) for item in strategy._policy.module.parameters()}
        return kinds, {str(tensor.dtype) for _, tensor in strategy.weights()}

    for kinds, served in on_ranks(work, 2, tmp_path):
        assert kinds == {(True, "torch.float32"), (False, "torch.bfloat16")}
        assert served == {"torch.bfloat16"}


def test_a_whole_critic_learns_beside_adapters(kit, qwen_folder, tmp_path):
    critic = CriticSection(lr=1e-2, eps=1e-3)
    losses, weights, _ = steps(kit, qwen_folder, "single", list(range(8)), critic=critic, lora=LORA)
    for found, own, _ in on_ranks(
        lambda rank: steps(kit, qwen_folder, "fsdp2", SHARES[2][rank], critic=critic, lora=LORA), 2, tmp_path
    ):
        assert largest(own, weights) <= 2e-6
        assert found == [pytest.approx(one, rel=1e-3, abs=2e-5) for one in losses]


def test_an_average_of_adapters_is_exported_merged(kit, qwen_folder):
    strategy, _ = trained(kit, qwen_folder, ema=True)
    last = dict(strategy.weights())
    strategy.take_average()
    changed = {name for name, tensor in strategy.weights() if not torch.equal(tensor, last[name])}
    assert changed == {name for name in last if "proj.weight" in name}


@pytest.mark.parametrize("name", ["q_prj", "lm_head", "embed_tokens", "self_attn"])
def test_a_name_that_is_no_inner_linear_layer_is_refused(kit, qwen_folder, name):
    with pytest.raises(UserError, match=f"no linear layer '{name}'") as caught:
        build(kit, qwen_folder, "single", lora={**LORA, "target_modules": ["v_proj", name]})
    assert caught.value.where == "model.lora.target_modules"
    assert ("Did you mean 'q_proj'?" if name == "q_prj" else "q_proj") in str(caught.value)


def test_all_linear_stands_alone():
    with pytest.raises(ValidationError, match="all-linear stands alone"):
        LoraSection(rank=4, target_modules=["all-linear", "q_proj"])


def test_what_cannot_be_is_refused(kit, qwen_folder, tmp_path):
    def work(rank):
        texts = []
        for use, lora, options in (
            ("fsdp2", QLORA, {}),
            ("fsdp2", LORA, {"tensor_parallel": 2}),
            ("fsdp2", None, {"tensor_parallel": 2, "optim": OptimSection(optimizer="adamw_8bit")}),
        ):
            try:
                build(kit, qwen_folder, use, lora=lora, **options)
            except UserError as error:
                texts.append(str(error))
        return texts

    for four_bits, layers, optimizer in on_ranks(work, 2, tmp_path):
        assert four_bits.startswith("model.lora.load_in_4bit: weights in 4 bits cannot be split over ranks.")
        assert layers.startswith("strategy.tensor_parallel: layers with adapters cannot be split over ranks.")
        assert optimizer.startswith("strategy.tensor_parallel: 8-bit moments cannot be split along rows.")


def test_lora_says_what_it_needs(kit, qwen_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"Install lightrft-engines\[lora\]"):
        build(kit, qwen_folder, "single", lora=LORA)


@pytest.mark.gpu
def test_a_reference_without_weights_of_its_own_cannot_be_moved(kit, qwen_folder):
    with pytest.raises(UserError, match=r"has no effect beside model\.lora"):
        build(kit, qwen_folder, "single", lora=LORA, reference_offload=True)


@pytest.mark.gpu
@pytest.mark.parametrize("lora", [LORA, QLORA])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_trains_adapters_and_serves_what_it_trains(kit, wide_folder, precision, lora):
    strategy, adapter = trained(kit, wide_folder, lora, precision=precision)
    setup = kit.setup(wide_folder)
    setup.model, setup.strategy = adapter, strategy
    engine = EmbeddedEngine(EmbeddedConfig(), setup)
    assert engine.fingerprint(list(strategy.fingerprint())) == strategy.fingerprint()
    batch = batch_of(kit, adapter, 3)
    with torch.no_grad():
        served = adapter.logprobs(engine.module, batch).logprobs_BT.cpu()
    assert torch.allclose(served, strategy.logprobs(batch).logprobs_BT, atol=1e-3 if precision == "fp32" else 0.2)
