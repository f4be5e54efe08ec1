"""A run file on a machine, settled: who computes how many rows of which length."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from lightrft_core.abilities import SequenceAdapter
from lightrft_core.assembly import Builder, needs_of
from lightrft_core.batch_rule import BatchPlan, check_batch
from lightrft_core.data import Prompt
from lightrft_core.errors import UserError
from lightrft_core.plugins import Plugins
from lightrft_core.protocols import ModelAdapter, Setup, Task
from lightrft_core.runfile import RunFile
from lightrft_core.sections import SamplerSection
from lightrft_core.setups import first_setup

from lightrft_engines.estimate.target import Target
from lightrft_engines.estimate.work import Rows
from lightrft_engines.training.config import TrainingConfig

MEASURED = 64  # prompts of the most text, among which the longest is looked for


@dataclass(frozen=True, slots=True)
class Lengths:
    """The longest prompt in tokens, and the number of held-out prompts with theirs; 0 without an evaluation."""

    prompt: int
    held_out: int
    held_out_prompt: int


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that an estimate depends on."""

    run_file: RunFile
    setup: Setup
    target: Target
    batch: BatchPlan
    lengths: Lengths

    @property
    def config(self) -> TrainingConfig:
        """The strategy's options."""
        return cast(TrainingConfig, self.run_file.strategy.config)

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes with."""
        return self.target.dtype(self.config)

    @property
    def tensor_parallel(self) -> int:
        """Ranks that split each layer."""
        return int(getattr(self.config, "tensor_parallel", 1))

    @property
    def width(self) -> int:
        """Ranks that compute the same rows."""
        return self.config.sequence_parallel * self.tensor_parallel

    @property
    def sampler(self) -> SamplerSection:
        """How many completions of which length."""
        return self.setup.sampler

    @property
    def drawn(self) -> Rows:
        """What one rank generates."""
        return self._rows(self.batch.prompts_per_step // self.batch.world_size, self.batch.group_size)

    @property
    def scored(self) -> Rows:
        """What one rank takes log-probabilities of."""
        return self._rows(self.drawn.num_prompts * self.width, self.batch.group_size)

    @property
    def trained(self) -> Rows:
        """What one rank computes in one optimizer step."""
        num, group = self.batch.minibatch_size // self.batch.world_size * self.width, self.batch.group_size
        return self._rows(-(-num // group), min(num, group))

    @property
    def held_out(self) -> Rows | None:
        """What one rank generates in an evaluation."""
        if not self.lengths.held_out:
            return None
        section = self.run_file.evaluation
        num = -(-self.lengths.held_out // self.batch.world_size)
        tokens = section.max_new_tokens or self.sampler.max_new_tokens
        return Rows(num, section.num_samples, self.lengths.held_out_prompt, tokens)

    def _rows(self, num_prompts: int, group_size: int) -> Rows:
        return Rows(num_prompts, group_size, self.lengths.prompt, self.sampler.max_new_tokens)


def make_case(run_file: RunFile, plugins: Plugins, target: Target, like: Case | None = None) -> Case:
    """Read tokenizer and prompts, but for what a case like it has already; no weights.

    `UserError` where the run could not start."""
    batch = check_batch(run_file, target.ranks)
    builder = Builder(plugins, first_setup(run_file, plugins, Path()))
    setup = builder.setup
    setup.needs = needs_of(run_file)
    setup.critic = run_file.critic if run_file.needs_values else None
    is_same_model = like is not None and like.run_file.model == run_file.model
    setup.model = like.setup.model if like is not None and is_same_model else builder.instance(run_file.model)
    config = cast(TrainingConfig, run_file.strategy.config)  # `Question` refuses others
    _require_sequence_ranks(setup.require_model(), config, target.ranks)
    if like is not None:
        return Case(run_file, setup, target, batch, like.lengths)
    held_out = builder.instance(run_file.evaluation_task) if run_file.evaluation_task else None
    lengths = _lengths(setup.require_model(), cast(Task, builder.instance(run_file.task)), held_out)
    return Case(run_file, setup, target, batch, lengths)


def _require_sequence_ranks(model: ModelAdapter, config: TrainingConfig, ranks: int) -> None:
    """As the strategy does when it starts."""
    size = config.sequence_parallel
    if size == 1:
        return
    if ranks % size or not isinstance(model, SequenceAdapter):
        what = f"{size} ranks cannot share each sequence: there are {ranks}, and {size} has to divide them."
        raise UserError(what, where="strategy.sequence_parallel", hint="Choose a divisor of the ranks, or 1.")
    model.require_sequence_ranks(size)


def _lengths(model: ModelAdapter, task: Task, held_out: Task | None) -> Lengths:
    prompts = held_out.everything() if held_out is not None else []
    return Lengths(_longest(model, task.everything()), len(prompts), _longest(model, prompts))


def _longest(model: ModelAdapter, prompts: Iterable[Prompt]) -> int:
    """Tokens of the longest prompt: rendering all would be slow, and much text is many tokens."""
    by_text = sorted(prompts, key=lambda prompt: -sum(len(message["content"]) for message in prompt.messages))
    return max((len(model.render(prompt)) for prompt in by_text[:MEASURED]), default=0)
