"""The modules of a run, built without weights as often as they are traced."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from lightrft_core.abilities import FreezingAdapter, LoraAdapter, SkeletonAdapter
from lightrft_core.errors import UserError
from lightrft_core.protocols import Setup
from lightrft_core.sections import CriticSection
from torch import nn
from transformers import PreTrainedModel

from lightrft_engines.config import TextConfig
from lightrft_engines.estimate.census import Census, census
from lightrft_engines.estimate.meter import Weightless
from lightrft_engines.freezing import freeze
from lightrft_engines.hub import build_model, load_config
from lightrft_engines.training.fsdp2 import shard_units
from lightrft_engines.value_model import ValueModel


@dataclass(frozen=True, slots=True)
class Blueprint:
    """How to build a module on the meta device. `learns` is so for all weights; None: as they are marked."""

    name: str
    make: Callable[[], nn.Module]
    units: tuple[str, ...] = ()
    learns: bool | None = True
    in_4_bits: bool = False

    def build(self) -> tuple[nn.Module, list[nn.Module]]:
        """The module and its blocks, in the order in which they compute."""
        module = self.make()
        if self.learns is not None:
            module.requires_grad_(self.learns)
        return module, shard_units(module, self.units)[::-1]

    def fresh(self, dtype: torch.dtype) -> tuple[Weightless, list[nn.Module]]:
        """The same for a trace, which takes it apart."""
        module, blocks = self.build()
        return Weightless(module, dtype), blocks

    def census(self) -> Census:
        """Its weights, counted."""
        module, blocks = self.build()
        return census(module, blocks, in_4_bits=self.in_4_bits)


@dataclass(frozen=True, slots=True)
class Blueprints:
    """`plain` is the policy as engines and the reference have it, `policy` as it trains: with adapters, or this rank's
    part where ranks split layers. With adapters these learn alone, and the reference is the policy without them."""

    plain: Blueprint
    policy: Blueprint
    reference: Blueprint | None
    critic: Blueprint | None
    has_adapters: bool


def blueprints(setup: Setup, tensor_parallel: int) -> Blueprints:
    """Of a run whose adapter is built, `setup.needs` and `setup.critic` known."""
    adapter, units = setup.require_model(), setup.shard_units
    if not isinstance(adapter, SkeletonAdapter):
        raise UserError(
            "this model adapter cannot build its model without weights, so its memory is not known.",
            where="model.use",
            hint="`lightrft plugins list --kind model` shows the others.",
        )
    plain = Blueprint("plain", lambda: adapter.skeleton("policy"), units)
    learns = None if isinstance(adapter, FreezingAdapter) and adapter.freezes else True
    policy = Blueprint("policy", plain.make, units, learns)
    has_adapters = isinstance(adapter, LoraAdapter) and adapter.uses_lora
    if isinstance(adapter, LoraAdapter) and has_adapters:
        policy = Blueprint("lora", adapter.lora_skeleton, units, None, in_4_bits=not adapter.lora_shards)
    elif tensor_parallel > 1:
        config = setup.model_section
        policy = Blueprint(f"part{tensor_parallel}", lambda: _part(config, tensor_parallel), units, learns)
    reference = None
    if "ref_logprobs" in setup.needs and not has_adapters:
        reference = Blueprint(policy.name, policy.make, units, learns=False)
    critic = None if setup.critic is None else _critic(setup, setup.critic)
    return Blueprints(plain, policy, reference, critic, has_adapters)


def _critic(setup: Setup, section: CriticSection) -> Blueprint:
    adapter, config = cast(SkeletonAdapter, setup.require_model()), setup.model_section

    def make() -> nn.Module:
        if section.path is None or not isinstance(config, TextConfig):
            module = adapter.skeleton("critic")
        else:
            own = config.model_copy(update={"path": section.path, "revision": None})
            module = build_model(own, load_config(own))
        return ValueModel(module.get_decoder(), module.base_model_prefix, section.head, None)

    return Blueprint(f"critic {section.path}", make, setup.shard_units)


def _part(config: object, ranks: int) -> PreTrainedModel:
    """What one of `ranks` holds of a model whose layers are split by heads, features and vocabulary."""
    if not isinstance(config, TextConfig):
        raise UserError("its layers cannot be split before the model is loaded.", where="strategy.tensor_parallel")
    hf_config = copy.deepcopy(load_config(config))
    text = hf_config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if any(num % ranks for num in (text.num_attention_heads, text.num_key_value_heads, text.intermediate_size)):
        what = f"{ranks} ranks cannot share a layer: they have to divide its heads and its hidden features."
        raise UserError(what, where="strategy.tensor_parallel", hint="Set it to 1, or to a divisor that fits.")
    text.update(
        {
            "head_dim": width,
            "num_attention_heads": text.num_attention_heads // ranks,
            "num_key_value_heads": text.num_key_value_heads // ranks,
            "intermediate_size": text.intermediate_size // ranks,
            "vocab_size": text.vocab_size // (1 if text.vocab_size % ranks else ranks),
        }
    )
    module = build_model(config, hf_config)
    if config.freeze:
        freeze(module, config.freeze)
    return module
