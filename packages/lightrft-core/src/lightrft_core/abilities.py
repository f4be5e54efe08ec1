"""What some components can do beyond `protocols`: they say so in their descriptor's `provides`, or by their methods.

A run file that needs an ability is refused where the chosen component lacks it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightrft_core.data import Batch, FinishReason, GenerateRequest, Tensor
from lightrft_core.gap import Gap
from lightrft_core.protocols import Layout, LogProbs, ModelAdapter, Module, Strategy, World
from lightrft_core.sections import CriticSection

Ranks = Any  # the ranks that share a sequence, as the strategy's framework knows them
Share = Callable[[Sequence[int], LogProbs], Tensor]
"""Rows of a batch and their log-probabilities, to these rows' share of a loss: a scalar."""


class ValueAdapter(ModelAdapter, Protocol):
    """A model adapter that can make a critic of its model: one whose component provides `values`."""

    def load_critic(self, critic: CriticSection) -> Module:
        """The critic: a model with a value head that maps a hidden state to a number; patches applied, on the CPU."""

    def values(self, critic: Module, batch: Batch, *, layout: Layout = "auto") -> Tensor:
        """Values [B, T] of what each completion token was chosen in, of the critic's accurate type.

        A token's value has not seen the token itself; entries past a row's length are 0. Carries gradients where
        they are enabled. `layout_for` plans cuts for a critic as for any module.
        """

    def export_critic(self, critic: Module, path: Path, *, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write a folder that `load_critic` takes, and `AutoModelForSequenceClassification` where it has the model.

        `weights` are whole parameters by name, given where the critic holds but shards of them.
        """


@runtime_checkable
class SkeletonAdapter(Protocol):
    """A model adapter that can build its model without memory, so that a strategy may load it shard by shard."""

    def skeleton(self, role: str) -> Module:
        """What `load` returns, on the meta device."""


@runtime_checkable
class LoraAdapter(Protocol):
    """A model adapter whose policy may learn by LoRA: low-rank adapters in place, all other weights frozen."""

    @property
    def uses_lora(self) -> bool:
        """Whether the run asks for it; the other methods are for this case alone."""

    @property
    def lora_shards(self) -> bool:
        """Whether the weights may be split over ranks; those in 4 bits may not."""

    def load_lora(self) -> Module:
        """The policy with adapters by PEFT, which alone take a gradient; the same on every rank. `load` has none."""

    def lora_skeleton(self) -> Module:
        """The same without weights, on the meta device."""

    def base_digest(self) -> bytes:
        """A hash of the base model's files: adapters belong to one base model."""


@runtime_checkable
class LossAdapter(Protocol):
    """A model adapter that brings the loss to its log-probabilities, so that fewer of these exist at one time."""

    def loss(
        self,
        module: Module,
        batch: Batch,
        share: Share,
        *,
        layout: Layout = "auto",
        entropy: bool = False,
        chunk: int | None = None,
    ) -> Tensor:
        """The sum over the batch's rows of what `share` makes of their log-probabilities, with its gradient.

        `share` is called with some rows at a time, each row once; what it returns depends on the module by the
        log-probabilities and entropies alone. The other parameters are those of `ModelAdapter.logprobs`.
        """


@runtime_checkable
class FreezingAdapter(Protocol):
    """A model adapter that may keep parts of the policy as they are."""

    @property
    def freezes(self) -> bool:
        """Whether the run asks for it: then only what takes a gradient in the policy, or its skeleton, learns."""


@runtime_checkable
class SequenceAdapter(Protocol):
    """A model adapter whose packed rows can be split over ranks."""

    def require_sequence_ranks(self, size: int) -> None:
        """`UserError` where so many ranks cannot share a sequence of this model."""

    def logprobs(
        self,
        module: Module,
        batch: Batch,
        *,
        layout: Layout = "auto",
        entropy: bool = False,
        chunk: int | None = None,
        ranks: Ranks = None,
    ) -> LogProbs:
        """See `ModelAdapter.logprobs`; each rank computes its slice of the packed row, and all return the same."""

    def values(self, critic: Module, batch: Batch, *, layout: Layout = "auto", ranks: Ranks = None) -> Tensor:
        """See `ValueAdapter.values`; likewise."""


class RefreshingStrategy(Strategy, Protocol):
    """A strategy that can renew its reference: one whose component provides `reference_refresh`."""

    def refresh_reference(self) -> None:
        """Make the policy as it is now the reference; checkpoints hold the renewed one."""


class MixingStrategy(Strategy, Protocol):
    """A strategy whose steps may learn supervised examples too: one whose component provides `mix_in`."""

    def mix_in(self, examples: Batch, coef: float) -> None:
        """The next step, and it alone, adds `coef` times the mean over all ranks' tokens of -log p of these."""


class LoraStrategy(Strategy, Protocol):
    """A strategy that may train adapters alone: one whose component provides `lora`."""

    def export_adapters(self, path: Path) -> None:
        """Write the adapters as a PEFT folder; `UserError` where the run trained all weights."""


class AveragingStrategy(Strategy, Protocol):
    """A strategy that may keep a moving average of the policy's weights: one whose component provides `ema`."""

    def take_average(self) -> None:
        """Make the average the policy, for an export; `UserError` where the run kept none."""


@runtime_checkable
class GaugingStrategy(Strategy, Protocol):
    """A strategy that measures how far the engine is from it: one whose component provides `gap`.

    Its steps report `StepStats.gap`, of the log-probabilities that they compute anyway, and heed `Objective.max_gap`.
    """

    def gap(self, batch: Batch) -> Gap | None:
        """Over the masked tokens of all ranks, from `old_logprobs_BT`; None where these were not filled."""


@runtime_checkable
class RestingStrategy(Protocol):
    """A strategy whose optimizer state may give its place up while the engine generates."""

    def sleep(self) -> None:
        """No update comes before `wake`; weights stay where they are, and checkpoints may be taken."""

    def wake(self) -> None:
        """Be ready for updates."""


@runtime_checkable
class MeteredStrategy(Protocol):
    """A strategy that knows how much memory its device uses."""

    def peak_bytes(self) -> float | None:
        """The most since the last call; None where models live in the process's own memory."""


@runtime_checkable
class StagingStrategy(Strategy, Protocol):
    """A strategy that can be saved while it trains on: one whose component provides `background_save`."""

    @property
    def beside(self) -> World:
        """The same ranks for a second thread: what it sends never mixes with what `world` sends.

        All ranks ask for it together the first time.
        """

    def stage(self, *, export: str | None = None, state: bool = True) -> Callable[[Path], None]:
        """A copy of the state in CPU memory; all ranks call it together.

        What is returned writes the copy as `save` writes the state: it is called once, on every rank, by a second
        thread, and touches no module. With `export` it also writes what `export` writes, into the folder of that name;
        without `state` that is all that is copied and written.
        """


@dataclass(frozen=True, slots=True)
class Piece:
    """More of one completion: new tokens of `place` (request, sibling), with the reason where they are the last."""

    place: tuple[int, int]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason | None = None


@runtime_checkable
class StreamingEngine(Protocol):
    """An engine that tells what it writes while it writes; others are asked for whole completions."""

    def stream(self, requests: Sequence[GenerateRequest]) -> Iterator[Sequence[Piece]]:
        """The completions of `generate`, token for token: after each step what is new, and every end.

        Several may be open and take turns. Closed early, it stops.
        """
