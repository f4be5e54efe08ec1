"""Frozen parameters keep their bytes under every strategy; the others learn as in one process that freezes the same."""

import pytest
import torch
from lightrft_core.errors import UserError
from lightrft_core.sections import CriticSection, OptimSection
from lightrft_engines.config import TextConfig
from lightrft_engines.embedded import EmbeddedEngine
from lightrft_engines.embedded_config import EmbeddedConfig
from lightrft_engines.estimate.census import census
from lightrft_engines.freezing import freeze
from lightrft_engines.text import TextAdapter
from lightrft_engines.training.fsdp2 import shard_units
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.engines.ranks import on_ranks
from tests.engines.test_checkpoints import Written, exporter, folders_of, require_equal, step, weights_of
from tests.engines.test_strategies import SHARES, build, largest, steps, strategy_of

ALL_ROWS = list(range(8))
FROZEN = {
    "whole units, from the input on": ("model.embed_tokens", "model.layers.0"),
    "parts of units, and the output": ("model.layers.1.mlp", "model.layers.0.input_layernorm", "model.norm", "lm_head"),
    "all but the output": ("model",),
}
EARLY = FROZEN["whole units, from the input on"]
MIXED = FROZEN["parts of units, and the output"]
WITHOUT_SLOPE = "k_proj.bias"  # a softmax takes no notice of it


def chosen(names, prefixes):
    return {name for name in names if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)}


def marks(module):
    return {name: parameter.requires_grad for name, parameter in module.named_parameters()}


def as_loaded(folder, dtype=torch.float32):
    return {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}


def require_kept(weights, start, prefixes):
    """Named ones are what they were, bit for bit, and all others are not."""
    assert weights.keys() == start.keys()
    frozen = chosen(start, prefixes)
    assert frozen
    for name, before in start.items():
        if not name.endswith(WITHOUT_SLOPE) or name in frozen:
            assert torch.equal(torch.as_tensor(weights[name], dtype=before.dtype), before) is (name in frozen), name


def adapter_of(kit, folder, prefixes):
    return TextAdapter(TextConfig(path=str(folder), freeze=prefixes), kit.setup(folder))


@pytest.mark.parametrize("prefixes", FROZEN.values())
def test_the_policy_and_its_skeleton_are_marked_and_no_other_role_is(kit, qwen_folder, prefixes):
    adapter = adapter_of(kit, qwen_folder, prefixes)
    for module in (adapter.load("policy"), adapter.skeleton("policy")):
        found = marks(module)
        assert {name for name, learns in found.items() if not learns} == chosen(found, prefixes)
    critic = adapter.load_critic(CriticSection())
    for module in (adapter.load("reference"), adapter.skeleton("reference"), critic):
        assert all(marks(module).values())


def test_without_prefixes_nothing_is_marked(kit, qwen_folder):
    adapter = adapter_of(kit, qwen_folder, ())
    assert not adapter.freezes
    assert all(marks(adapter.load("policy")).values())


def test_one_prefix_may_stand_alone():
    assert TextConfig(path="m", freeze="model.norm").freeze == ("model.norm",)


def test_parts_of_a_name_are_whole(kit):
    module = kit.model("qwen2", num_hidden_layers=11)
    freeze(module, ["model.layers.1", "model.layers.2.mlp.up_proj.weight"])
    frozen = {name for name, learns in marks(module).items() if not learns}
    assert frozen == {name for name in marks(module) if name.startswith("model.layers.1.")} | {
        "model.layers.2.mlp.up_proj.weight"
    }


@pytest.mark.parametrize(
    ("prefix", "hint"),
    [
        ("model.layer.1", "Did you mean 'model.layers.1'?"),
        ("model.layers.1.mlp.up_prj", "Did you mean 'model.layers.1.mlp.up_proj'?"),
        ("layers.1.mlp", "Did you mean 'model.layers.1.mlp'?"),
        ("model.layers.", "Did you mean 'model.layers'?"),
        ("visual", "There is: model, model.embed_tokens, "),
    ],
)
def test_a_prefix_of_no_parameter_is_refused(kit, qwen_folder, prefix, hint):
    adapter = adapter_of(kit, qwen_folder, ("model.norm", prefix))
    for load in (adapter.load, adapter.skeleton):
        with pytest.raises(UserError, match=r"model\.freeze: the model has no parameter whose name starts") as caught:
            load("policy")
        assert repr(prefix) in caught.value.what
        assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("named", "other"), [("lm_head", "model.embed_tokens.weight"), ("model.embed_tokens", "lm_head.weight")]
)
def test_half_of_a_tied_weight_is_refused_and_both_names_freeze_it(kit, tmp_path, named, other):
    folder = kit.folder(tmp_path / "model", tie_word_embeddings=True)
    with pytest.raises(UserError, match=r"are one weight") as caught:
        adapter_of(kit, folder, (named,)).load("policy")
    assert caught.value.where == "model.freeze"
    assert f"Name {other!r} too" in caught.value.hint
    both = adapter_of(kit, folder, ("lm_head", "model.embed_tokens"))
    for module in (both.load("policy"), both.skeleton("policy")):
        assert [name for name, learns in marks(module).items() if not learns] == ["model.embed_tokens.weight"]


def test_freezing_everything_is_refused(kit, qwen_folder):
    with pytest.raises(UserError, match=r"model\.freeze: it names every parameter, so the policy would learn nothing"):
        build(kit, qwen_folder, "single", freeze=("model", "lm_head"))


def test_beside_adapters_it_has_no_effect(run_problems, load_run):
    base = "model: {path: ./model, freeze: model.norm}\ntask: {path: ./train.jsonl}\nrewards: [exact]\n"
    (text,) = run_problems(base.replace("model.norm", "model.norm, lora: {rank: 4}"))
    assert "model.freeze: has no effect: model.lora trains adapters alone." in text
    assert load_run(base).to_plain()["model"]["freeze"] == ["model.norm"]
    assert "freeze" not in load_run(base, sets=("model.lora={rank: 4}",)).to_plain()["model"]


@pytest.fixture(scope="module")
def alone(kit, qwen_folder):
    """What one process does on all rows."""
    return {name: steps(kit, qwen_folder, "single", ALL_ROWS, freeze=prefixes) for name, prefixes in FROZEN.items()}


@pytest.mark.parametrize("name", FROZEN)
def test_one_process_leaves_them_alone(qwen_folder, alone, name):
    require_kept(alone[name][1], as_loaded(qwen_folder), FROZEN[name])


@pytest.mark.parametrize("name", FROZEN)
def test_the_gradient_of_the_others_is_what_it_is_without(kit, qwen_folder, name):
    """Of the first step: later ones are of other models."""

    def first(prefixes):
        strategy, adapter = build(kit, qwen_folder, "single", freeze=prefixes, optim=OptimSection(max_grad_norm=0))
        step(kit, strategy, adapter, ALL_ROWS, 0)
        return weights_of(strategy)

    found, expected = first(FROZEN[name]), first(())
    learning = found.keys() - chosen(found, FROZEN[name])
    assert largest(found, {name: expected[name] for name in learning}) <= 1e-7


@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("single", {"sequence_parallel": 2}),
        ("single", {"checkpointing": True, "checkpointing_reentrant": True}),
        ("ddp", {"micro_batch_size": 1}),
        ("fsdp2", {}),
        ("fsdp2", {"micro_batch_size": 1, "packing": False, "meta_init": False}),
        ("fsdp2", {"checkpointing": True, "reshard_after_forward": False, "micro_batch_size": 1}),
        ("fsdp2", {"checkpointing": True, "checkpointing_reentrant": True, "cpu_offload": True}),
        ("fsdp2", {"tensor_parallel": 2}),
        ("deepspeed", {"stage": 1, "micro_batch_size": 1}),
        ("deepspeed", {"stage": 2, "micro_batch_size": 2, "packing": False, "checkpointing": True}),
        ("deepspeed", {"stage": 3, "zpg": 2, "micro_batch_size": 1}),
        ("deepspeed", {"stage": 3, "sequence_parallel": 2, "cpu_offload": True}),
    ],
)
def test_ranks_take_the_steps_of_one_process(kit, qwen_folder, tmp_path, alone, use, options):
    strategy_of(use)
    start = as_loaded(qwen_folder)

    def work(rank):
        rows = SHARES[2][rank]
        return {name: steps(kit, qwen_folder, use, rows, freeze=own, **options) for name, own in FROZEN.items()}

    for results in on_ranks(work, 2, tmp_path):
        for name, (found, trained, prints) in results.items():
            losses, weights, own_prints = alone[name]
            require_kept(trained, start, FROZEN[name])
            assert largest(trained, weights) <= 2e-6
            assert found == [pytest.approx(step, rel=1e-3, abs=2e-5) for step in losses]
            assert prints == pytest.approx(own_prints, rel=1e-4, abs=1e-4)


def test_tensor_ranks_keep_a_vocabulary_that_they_split(kit, tmp_path):
    folder = kit.folder(tmp_path / "model", vocab_size=98, tie_word_embeddings=True)
    prefixes = ("model.embed_tokens", "lm_head", "model.layers.0.self_attn.o_proj")
    losses, weights, _ = steps(kit, folder, "single", ALL_ROWS, freeze=prefixes)

    def work(rank):
        return steps(kit, folder, "fsdp2", SHARES[2][rank], freeze=prefixes, tensor_parallel=2)

    for found, trained, _ in on_ranks(work, 2, tmp_path):
        require_kept(trained, as_loaded(folder), prefixes)
        assert largest(trained, weights) <= 2e-6
        assert found == [pytest.approx(step, rel=1e-3, abs=2e-5) for step in losses]


@pytest.mark.parametrize("optimizer", ["muon", "adamw_8bit"])
@pytest.mark.parametrize("use", ["single", "fsdp2"])
def test_other_optimizers_hold_nothing_of_them(kit, tmp_path, use, optimizer):
    folder = kit.folder(tmp_path / "model", hidden_size=64, head_dim=16, intermediate_size=128, scale=1.0)
    optim = OptimSection(lr=1e-2, optimizer=optimizer)
    (tmp_path / "saved").mkdir()

    def work(rank):
        strategy, adapter = build(kit, folder, use, freeze=MIXED, optim=optim)
        for seed in range(2):
            step(kit, strategy, adapter, SHARES[2][rank], seed)
        strategy.save(tmp_path / "saved")
        return weights_of(strategy)

    for weights in on_ranks(work, 2, tmp_path):
        require_kept(weights, as_loaded(folder), MIXED)
    state = {key.split(".", 1)[1] for key in folders_of(tmp_path / "saved")["policy/optimizer"]}
    assert state.isdisjoint(chosen(as_loaded(folder), MIXED))
    assert state


@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("single", {}),
        ("ddp", {}),
        ("fsdp2", {}),
        ("fsdp2", {"master_weights": False}),
        ("deepspeed", {"stage": 1}),
        ("deepspeed", {"stage": 2, "grad_accum_dtype": "bf16"}),
        ("deepspeed", {"stage": 3}),
    ],
)
def test_in_bf16_with_an_average_they_keep_their_bytes_into_checkpoint_and_export(
    kit, qwen_folder, tmp_path, use, options
):
    strategy_of(use)
    optim = OptimSection(lr=0.1)
    (tmp_path / "saved").mkdir()
    start = as_loaded(qwen_folder, torch.bfloat16)

    def work(rank):
        strategy, adapter = build(
            kit, qwen_folder, use, freeze=EARLY, optim=optim, precision="bf16", ema=True, ema_beta=0.5, **options
        )
        for seed in range(2):
            step(kit, strategy, adapter, SHARES[2][rank], seed)
        trained = weights_of(strategy)
        strategy.save(tmp_path / "saved")
        strategy.take_average()
        return trained, weights_of(strategy)

    for trained, averaged in on_ranks(work, 2, tmp_path):
        require_kept(trained, start, EARLY)
        require_kept(averaged, start, EARLY)
        assert largest(trained, averaged) > 0
    held, frozen = folders_of(tmp_path / "saved"), chosen(start, EARLY)
    assert held["policy/weights"].keys() == start.keys()
    for name in frozen:
        assert held["policy/weights"][name].dtype == torch.bfloat16
        assert torch.equal(held["policy/weights"][name], start[name])
    learning = start.keys() - frozen
    assert held["ema"].keys() == learning
    assert {key.split(".", 1)[1] for key in held["policy/optimizer"]} == learning
    exports = exporter(kit, qwen_folder, freeze=EARLY, ema=True)
    exports.load(tmp_path / "saved")
    exports.export(tmp_path / "export")
    require_kept(load_file(tmp_path / "export/model.safetensors"), start, EARLY)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype="auto").dtype == torch.bfloat16


@pytest.fixture(scope="module")
def written(kit, qwen_folder, tmp_path_factory):
    """Checkpoints with everything that one may hold, by three strategies."""
    writers = {"single": (1, {}), "fsdp2": (2, {}), "deepspeed": (2, {"stage": 3})}
    found = {}
    for use, (size, options) in writers.items():
        strategy_of(use)
        found[use] = Written(kit, qwen_folder, tmp_path_factory.mktemp(use), use, size, freeze=MIXED, **options)
    return found


@pytest.mark.parametrize("source", ["single", "fsdp2", "deepspeed"])
@pytest.mark.parametrize(
    ("use", "size", "options"),
    [
        ("single", 1, {}),
        ("ddp", 2, {}),
        ("fsdp2", 2, {"cpu_offload": True}),
        ("deepspeed", 2, {"stage": 1}),
        ("deepspeed", 2, {"stage": 2}),
        ("deepspeed", 2, {"stage": 3, "zpg": 2}),
    ],
)
def test_a_run_goes_on_under_any_strategy(kit, tmp_path, written, source, use, size, options):
    """It starts from another model, so that whatever is not read from the checkpoint shows."""
    strategy_of(use)
    other, checkpoint = kit.folder(tmp_path / "other", seed=1), written[source]
    (tmp_path / "again").mkdir()

    def work(rank):
        strategy, adapter = build(kit, other, use, freeze=MIXED, **checkpoint.options, **options)
        strategy.load(checkpoint.path)
        strategy.save(tmp_path / "again")
        step(kit, strategy, adapter, ALL_ROWS if size == 1 else SHARES[2][rank], 1)
        return weights_of(strategy)

    for weights in on_ranks(work, size, tmp_path):
        assert largest(weights, checkpoint.later) <= 2e-6
    require_equal(checkpoint.path, tmp_path / "again")


@pytest.mark.parametrize("prefixes", [(), EARLY])
def test_a_checkpoint_is_not_resumed_with_other_parameters_frozen(kit, qwen_folder, written, prefixes):
    strategy, _ = build(kit, qwen_folder, "single", freeze=prefixes, **written["single"].options)
    with pytest.raises(UserError, match="policy/optimizer belongs to another model or optimizer"):
        strategy.load(written["single"].path)


@pytest.mark.parametrize(
    ("use", "options"), [("single", {}), ("fsdp2", {}), ("deepspeed", {"stage": 2}), ("deepspeed", {"stage": 3})]
)
def test_a_critic_of_the_same_model_learns_all_of_its_own(kit, qwen_folder, tmp_path, use, options):
    strategy_of(use)

    def work(rank):
        strategy, adapter = build(
            kit, qwen_folder, use, freeze=MIXED, critic=CriticSection(lr=1e-2, eps=1e-3), **options
        )
        role = strategy.critic.role
        before = {name: tensor.clone() for name, tensor in role.served()}
        for seed in range(2):  # a new head is zero, so that it alone learns in the first step
            step(kit, strategy, adapter, ALL_ROWS, seed)
        moved = [name for name, tensor in role.served() if not torch.equal(tensor, before[name])]
        return set(role.learned()) == set(before), {name for name in before if name not in moved}

    ((learns_all, still),) = on_ranks(work, 1, tmp_path)
    assert learns_all
    assert all(name.endswith(WITHOUT_SLOPE) for name in still)


@pytest.mark.parametrize("use", ["single", "fsdp2"])
def test_an_engine_gets_them_too(kit, qwen_folder, tmp_path, use):
    def work(rank):
        strategy, adapter = build(kit, qwen_folder, use, freeze=EARLY)
        setup = kit.setup(qwen_folder)
        setup.model, setup.strategy = adapter, strategy
        engine = EmbeddedEngine(EmbeddedConfig(), setup)
        step(kit, strategy, adapter, ALL_ROWS, 0)
        engine.update_weights(strategy.weights, 1)
        names = list(dict(strategy.weights()))
        return engine.fingerprint(names) == strategy.fingerprint(len(names))

    assert on_ranks(work, 1, tmp_path) == [True]


@pytest.mark.parametrize("prefixes", FROZEN.values())
def test_a_census_counts_those_that_learn(kit, qwen_folder, prefixes):
    module = adapter_of(kit, qwen_folder, prefixes).skeleton("policy")
    found, start = census(module, shard_units(module)[::-1]), as_loaded(qwen_folder)
    assert found.count() == sum(tensor.numel() for tensor in start.values())
    learning = start.keys() - chosen(start, prefixes)
    assert sum(weight.num for weight in found.learning) == sum(start[name].numel() for name in learning)
