"""Weights are counted without memory, and as the real model has them."""

import pytest
import torch
from lightrft_core.sections import LearningSection
from lightrft_engines.config import LoraSection, TextConfig
from lightrft_engines.estimate.census import Census, Weight, census
from lightrft_engines.hub import build_model, load_config
from lightrft_engines.training.fsdp2 import shard_units


def counted(folder, **options):
    module = build_model(TextConfig(path=str(folder)), load_config(TextConfig(path=str(folder))))
    return census(module, shard_units(module)[::-1], **options)


TIED = {"tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("kind", "changes"), [("qwen2", {}), ("gpt2", {}), ("gemma2", {}), ("qwen3_moe", {}), ("qwen2", TIED)]
)
def test_a_census_counts_the_real_models_weights_and_tied_ones_once(kit, tmp_path, kind, changes):
    real = kit.model(kind, **changes)
    real.save_pretrained(tmp_path)
    found = counted(tmp_path)
    assert found.count() == sum(weight.numel() for weight in real.parameters())
    layers = real.get_decoder().layers if kind != "gpt2" else real.transformer.h
    assert found.count("blocks") == sum(weight.numel() for weight in layers.parameters())
    assert found.count("embeddings") == real.get_input_embeddings().weight.numel()
    is_tied = real.get_output_embeddings().weight is real.get_input_embeddings().weight
    assert found.count("head") == (0 if is_tied else real.get_output_embeddings().weight.numel())
    assert found.count() == found.rest() + found.count("blocks")


def test_the_largest_block_is_a_unit(qwen_folder, kit):
    layer = kit.model("qwen2").model.layers[0]
    assert counted(qwen_folder).unit() == sum(weight.numel() for weight in layer.parameters())


def test_with_adapters_they_alone_learn_and_4_bits_take_half_a_byte(qwen_folder):
    from lightrft_engines.lora import add_adapters

    config = TextConfig(path=str(qwen_folder))
    module = add_adapters(build_model(config, load_config(config)), LoraSection(rank=2), path=config.path, seed=0)
    blocks = shard_units(module)[::-1]
    found = census(module, blocks)
    real = sum(weight.numel() for name, weight in module.named_parameters() if "lora_" in name)
    assert sum(weight.num for weight in found.learning) == real
    packed = [weight for weight in census(module, blocks, in_4_bits=True).weights if weight.is_packed]
    assert sum(weight.num for weight in packed) == found.count("blocks") - real - _vectors(module)
    assert all(weight.resting(2) == round(0.516 * weight.num) for weight in packed)


def test_shards_are_rows_rounded_up():
    weight = Weight((5, 3), "blocks", 0, True)
    assert [weight.part(ranks) for ranks in (1, 2, 4, 8)] == [15, 9, 6, 3]


@pytest.mark.parametrize(
    ("optimizer", "shape", "block", "expected"),
    [
        ("adamw", (64, 64), 0, 8),
        ("adamw_8bit", (64, 64), 0, 2 + 8 / 256),
        ("adamw_8bit", (8, 8), 0, 8),
        ("adamw_8bit", (8192,), 0, 8),
        ("muon", (64, 64), 0, 4),
        ("muon", (64, 64), None, 8),
        ("muon", (64,), 0, 8),
    ],
)
def test_an_optimizer_remembers_so_many_bytes_per_entry(optimizer, shape, block, expected):
    assert Weight(shape, "blocks", block, True).remembered(optimizer, 4) == expected


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_that_is_what_the_real_optimizer_keeps(kit, optimizer):
    from lightrft_engines.training.optimizer import rules_for

    module = kit.model("qwen2")
    masters = dict(module.named_parameters())
    rules = rules_for(LearningSection(optimizer=optimizer), _Spread(module), masters)
    for master in masters.values():
        master.grad = torch.zeros_like(master)
    for rule in rules:
        rule.step(1e-3)
    kept = sum(tensor.nbytes for rule in rules for tensor in rule.state().values())
    found: Census = census(module, list(module.model.layers))
    assert sum(weight.num * weight.remembered(optimizer, 4) for weight in found.weights) == kept


class _Spread:
    """Whole weights."""

    def __init__(self, module):
        self.module = module

    def whole(self, name, own):
        return own

    part = whole


def _vectors(module):
    inside = (weight for layer in module.model.layers for weight in layer.parameters())
    return sum(weight.numel() for weight in inside if weight.ndim == 1)
