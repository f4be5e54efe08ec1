"""Measures the passes that a case's modules make: on the longest rows that may come, each kind of pass once."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import torch
from lightrft_core.data import Sampling
from lightrft_core.errors import UserError
from lightrft_core.protocols import SoloWorld
from torch import nn

from lightrft_engines.embedded_config import EmbeddedConfig
from lightrft_engines.estimate.blueprints import Blueprint
from lightrft_engines.estimate.case import Case
from lightrft_engines.estimate.census import Census
from lightrft_engines.estimate.courses import Course, forward_peak, training_course
from lightrft_engines.estimate.decoding import key_numbers, load_of, reading, writing
from lightrft_engines.estimate.memory import Memory
from lightrft_engines.estimate.meter import Weightless
from lightrft_engines.estimate.work import Cutter, Pass, Rows
from lightrft_engines.head import GPU_TILE
from lightrft_engines.head_loss import pays
from lightrft_engines.logprobs import assumed
from lightrft_engines.training.microbatch import Limits
from lightrft_engines.training.passes import Passes

Found = TypeVar("Found")
SPAN = 128  # the GPU's kernels write 16 bytes per token for 2048 entries of the vocabulary
SCORES = 12  # bytes of an attention score in decoding on a GPU: three copies in fp32


@dataclass(frozen=True, slots=True)
class Training:
    """The passes of one optimizer step on one rank, and the course of the largest."""

    course: Course
    num_passes: int
    tokens: int


class Tracer:
    """Measures; what is `known` already, from like cases too, is not measured again."""

    def __init__(self, case: Case, plain: Blueprint, known: dict[Hashable, object]) -> None:
        self._case, self._plain, self._known = case, plain, known
        config, adapter = case.config, case.setup.require_model()
        self._passes = Passes(adapter, config, torch.device(case.target.kind), SoloWorld())
        module, _ = plain.build()
        self._heads = int(module.config.get_text_config().num_attention_heads)
        self._abilities = assumed(module)
        ranks = config.sequence_parallel
        self._cutter = Cutter(self._abilities, self._passes.layout, config.logprob_chunk, ranks)

    def census(self, blueprint: Blueprint) -> Census:
        """Its weights."""
        return self._once(("census", blueprint.name, blueprint.learns), blueprint.census)

    def training(self, blueprint: Blueprint, *, values: bool = False) -> Training:
        """An optimizer step of a module; with `values` a critic's."""
        config = self._case.config
        num_passes, largest = self._cut(self._case.trained, self._passes.training_limits)
        options = {
            "checkpointing": config.checkpointing,
            "reentrant": config.checkpointing_reentrant,
            "offload": config.activation_offload,
        }

        def measure() -> Course:
            model, blocks = blueprint.fresh(self._case.dtype)
            compute = largest.values(model) if values else self._learning(largest, model)
            course = training_course(model, blocks, compute, **options)
            head = 0 if values else self._kernels(model.module, largest, learns=True)
            first, *others = course.moments
            return replace(course, moments=(replace(first, activations=first.activations + head), *others))

        key = ("training", blueprint.name, largest.key, *options.values())
        return Training(self._once(key, measure), num_passes, largest.tokens)

    def scoring(self, blueprint: Blueprint, *, values: bool = False) -> int:
        """The most bytes of activations in passes without gradient."""
        _, largest = self._cut(self._case.scored, self._passes.scoring_limits)

        def measure() -> int:
            model, blocks = blueprint.fresh(self._case.dtype)
            compute = largest.values(model) if values else largest.logprobs(model)
            peak = forward_peak(model, blocks, compute)
            return peak + (0 if values else self._kernels(model.module, largest, learns=False))

        return self._once(("scoring", blueprint.name, largest.key), measure)

    def decoding(self, rows: Rows, sampling: Sampling, config: EmbeddedConfig) -> Memory:
        """What `generate` takes beside the weights."""
        load, shares, size = load_of(rows, config), self._abilities.packing, self._case.dtype.itemsize
        numbers = self._once(("keys",), lambda: self._key_numbers(shares=shares))
        first_logits = load.prompts * self._vocabulary() * size
        read_key = ("reading", load.prompts, load.prompt_tokens, config.max_prefill_tokens)
        read = self._once(read_key, lambda: self._forward(reading(load, config.max_prefill_tokens, shares=shares)))
        write_key = ("writing", load.rows, sampling)
        write = self._once(write_key, lambda: self._forward(writing(load, sampling, shares=shares)))
        scores = SCORES * load.rows * self._heads * max(load.columns, load.prompt_tokens)
        write += scores if self._case.target.is_gpu else 0
        cache = numbers * load.tokens(shares=shares) * size
        return Memory(cache=cache, activations=max(read + 2 * first_logits, write + first_logits))

    def _learning(self, largest: Pass, model: Weightless) -> Callable[[nn.Module], torch.Tensor]:
        """The policy's pass with gradient, by the head where `logprobs.loss` goes that way."""
        is_whole = self._abilities.fused_head and self._case.config.sequence_parallel == 1
        is_here = is_whole and not self._case.target.is_gpu and pays(model.module.get_output_embeddings().weight)
        return largest.loss(model) if is_here else largest.logprobs(model)

    def _once(self, key: tuple[Hashable, ...], measure: Callable[[], Found]) -> Found:
        where = (repr(self._case.setup.model_section), self._case.dtype, self._case.target.kind, *key)
        if where not in self._known:
            try:
                self._known[where] = measure()
            except (RuntimeError, TypeError, NotImplementedError) as error:  # a stranger's model, on fake tensors
                what = f"this model's passes cannot be traced without its weights: {str(error)[:200]}"
                raise UserError(what, where="model.path", hint="Measure a step of a short run instead.") from error
        return cast(Found, self._known[where])

    def _cut(self, rows: Rows, limits: Limits) -> tuple[int, Pass]:
        try:
            return self._cutter.passes(rows, limits)
        except ValueError as error:
            raise UserError(str(error), where="strategy.packing", hint="Use `packing: auto` or `false`.") from error

    def _forward(self, compute: Callable[[nn.Module], torch.Tensor]) -> int:
        model, blocks = self._plain.fresh(self._case.dtype)
        return forward_peak(model, blocks, compute)

    def _key_numbers(self, *, shares: bool) -> int:
        model, blocks = self._plain.fresh(self._case.dtype)
        return key_numbers(model, len(blocks), shares=shares)

    def _vocabulary(self) -> int:
        module, _ = self._plain.build()
        return int(module.get_output_embeddings().weight.shape[0])

    def _kernels(self, module: nn.Module, work: Pass, *, learns: bool) -> int:
        """What the output layer takes on a GPU and not in the trace, which goes the CPU's way."""
        if not self._case.target.is_gpu or not self._abilities.fused_head:
            return 0
        entries = int(module.get_output_embeddings().weight.shape[0])
        return work.num_targets * entries // SPAN + (GPU_TILE * self._case.dtype.itemsize if learns else 0)
