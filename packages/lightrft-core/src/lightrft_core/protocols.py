"""What each kind of component must be able to do. Plain structural types: nothing here needs to be inherited.

Pure maths (advantages, losses, KL estimators, filters, selectors, corrections) are functions whose last named argument
is their validated `config`. What holds a resource or state is a class built as `Target(config, setup)`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from lightrft_core.data import (
    Batch,
    Completion,
    GenerateRequest,
    Group,
    KLOutput,
    LossInputs,
    LossOutput,
    Prompt,
    Score,
    ScoreRequest,
    StepReport,
    StepStats,
    Tensor,
)
from lightrft_core.objective import Objective
from lightrft_core.sections import CriticSection, ModelSection, OptimSection, RunSection, SamplerSection, Section

Module = Any  # a torch.nn.Module; core must not import torch
Weights = Callable[[], Iterator[tuple[str, Tensor]]]
Json = Any  # what json.dumps takes
Layout = Literal["auto", "padded", "packed"]
RunStatus = Literal["done", "stopped", "failed"]
Item = TypeVar("Item")


class World(Protocol):
    """The ranks that run this loop together. On one process every operation is trivial."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """Elementwise sum over ranks, in float64; the same on every rank."""

    def gather(self, item: Json) -> list[Json]:
        """Every rank's JSON value, in rank order, on every rank."""

    def barrier(self) -> None:
        """Wait until every rank is here."""


class SoloWorld:
    """The world of a single process."""

    rank = 0
    size = 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """The values themselves."""
        return list(values)

    def gather(self, item: Json) -> list[Json]:
        """The one item."""
        return [item]

    def barrier(self) -> None:
        """Return at once."""


@runtime_checkable
class Stateful(Protocol):
    """A component whose state belongs into checkpoints, as JSON."""

    def state_dict(self) -> dict[str, Json]:
        """Everything that a resumed run needs."""

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Take it back."""


class Task(Stateful, Protocol):
    """Where prompts come from. A task draws *global* prompts: every rank draws the same and takes its share."""

    def __len__(self) -> int:
        """Number of prompts in one pass."""

    def draw(self, num: int) -> list[Prompt]:
        """The next `num` prompts; passes follow each other without end, each in its own order."""

    def everything(self) -> list[Prompt]:
        """All prompts once, in file order: what an evaluation runs over."""

    def fingerprint(self) -> str:
        """Hash of the data: a resumed run refuses another."""


class Engine(Protocol):
    """What generates. Its weights are the trainer's as of `version`."""

    @property
    def version(self) -> int:
        """Version of the weights that are served."""

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        """For each request its completions, one a seed, in order; independent of what else is in the batch."""

    def update_weights(self, weights: Weights, version: int) -> None:
        """Serve these weights from now on; caches that depend on the old ones are reset."""

    def fingerprint(self, names: Sequence[str]) -> Mapping[str, float]:
        """A number per parameter name that changes when the served values do (see `Strategy.fingerprint`)."""

    def reset_cache(self) -> None:
        """Forget prefix and encoder caches."""

    def sleep(self) -> None:
        """Give memory back while the trainer works."""

    def wake(self) -> None:
        """Be ready to generate again."""

    def close(self) -> None:
        """Free everything."""


class Sampler(Protocol):
    """Prompts and an engine become groups of rollouts."""

    def sample(self, engine: Engine, prompts: Sequence[Prompt], *, step: int, attempt: int = 0) -> list[Group]:
        """One group per prompt, in order; seeds derive from (run seed, step, prompt id, sibling).

        Refills of a step count `attempt` up, so that a prompt that comes again is answered anew.
        """


class Reward(Protocol):
    """Judges completions."""

    def score(self, requests: Sequence[ScoreRequest]) -> Sequence[Score | float | None]:
        """One verdict a request, in order; None or `Score(None, reason=...)` where it cannot be scored."""


class Shaper(Protocol):
    """Changes rewards before the baseline."""

    def apply(self, groups: Sequence[Group], world: World) -> Mapping[str, float]:
        """Set `shaped_reward` of every scored rollout from its present value; return metrics."""


class Tracker(Protocol):
    """Takes metrics somewhere."""

    def log(self, report: StepReport) -> None:
        """One step's numbers."""

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """One evaluation's numbers."""

    def close(self, status: RunStatus) -> None:
        """Flush and end."""


class Callback(Protocol):
    """Told of what happens, on every rank."""

    def on_step(self, report: StepReport) -> None:
        """A step is done."""

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation is done."""

    def on_save(self, step: int, path: Path) -> None:
        """A checkpoint was published."""

    def on_end(self, status: RunStatus) -> None:
        """The run is over."""


@dataclass(frozen=True, slots=True)
class LogProbs:
    """Log-probabilities of completion tokens [B, T] at the sampling temperature, and the entropy where asked for."""

    logprobs_BT: Tensor
    entropy_BT: Tensor | None = None


class ModelAdapter(Protocol):
    """All that is particular to a model family: everything else treats models alike."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion."""

    def load(self, role: str) -> Module:
        """Weights for a role (`policy`, `reference`, ...), on the CPU or the strategy's device, patches applied."""

    def render(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of the prompt up to where the completion starts."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text, no special token added."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of completion tokens, special tokens left out."""

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """Each token's own text, special tokens kept: for people to read."""

    def collate(self, groups: Sequence[Group]) -> Batch:
        """Tensors of all rollouts, on the CPU; rows of a group adjacent, right-padded."""

    def layout_for(self, module: Module, batch: Batch, layout: Layout) -> Layout:
        """The layout that `logprobs` will use: `auto` resolved to `padded` or `packed`, so that cuts can be planned."""

    def logprobs(
        self,
        module: Module,
        batch: Batch,
        *,
        layout: Layout = "auto",
        entropy: bool = False,
        chunk: int | None = None,
    ) -> LogProbs:
        """Log-probabilities of the completion tokens under `module`; carries gradients where they are enabled.

        The layout changes speed, never the result: `padded` is the plain forward of each row, `packed` leaves padding
        out, `auto` picks the cheaper that this model supports. `chunk` bounds the tokens whose logits exist at a time.
        """

    def export(self, module: Module, path: Path, *, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write a folder that `AutoModelForCausalLM.from_pretrained` loads, tokenizer included.

        `weights` are whole parameters by name, given where the module holds but shards of them.
        """


class Strategy(Protocol):
    """How the model is trained: placement, sharding, optimizer. Gradients of ranks add up."""

    @property
    def world(self) -> World:
        """The ranks of this run."""

    @property
    def is_exact(self) -> bool:
        """Whether forward passes run in fp32 or better; comparisons allow more otherwise."""

    @property
    def policy(self) -> Module | None:
        """The trained module, for engines that serve it in place; None where this process lacks whole weights."""

    def fill(self, batch: Batch, needs: frozenset[str]) -> None:
        """Set the fields named in `needs`: `old_logprobs`, `ref_logprobs`, `entropy`, `values`."""

    def step(self, minibatch: Batch, objective: Objective) -> StepStats:
        """One optimizer step over all ranks' rows; non-finite gradients change nothing and are reported.

        Where `old_logprobs_BT` is None the policy is still the one that generated: its own log-probabilities serve.
        """

    def logprobs(self, batch: Batch, *, role: str = "policy", layout: Layout = "auto") -> LogProbs:
        """Log-probabilities and entropy without gradient."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full parameters by their Hugging Face names, one at a time."""

    def fingerprint(self, num: int = 8) -> Mapping[str, float]:
        """A float64 sum of a fixed sample of entries for `num` parameters spread over the model, tied ones once."""

    def save(self, path: Path) -> None:
        """Write model, optimizer, scheduler and random state into an existing folder: safetensors and JSON only."""

    def load(self, path: Path) -> None:
        """Take them back, exactly."""

    def export(self, path: Path) -> None:
        """Write the policy as a Hugging Face folder."""

    def close(self) -> None:
        """Leave the process group and free memory."""


@dataclass(frozen=True, slots=True)
class Advantages:
    """Per-token advantages, already normalised, and returns where a critic learns from them."""

    advantages_BT: Tensor
    returns_BT: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Corrected:
    """Weights for the gap between engine and trainer, a narrower mask where tokens are dropped, and metrics."""

    weights_BT: Tensor | None = None
    mask_BT: Tensor | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Setup:
    """What a component may know of the run while it is built. Later parts are None until they exist.

    `critic` is None where nothing needs values; `run.steps` is known once tasks are built. `shard_units` are class
    names of blocks that patches want gathered as one, where weights are sharded. Unless it `learns`, a strategy is
    never asked for a step, and need not load what only steps use.
    """

    run: RunSection
    optim: OptimSection
    sampler: SamplerSection
    model_section: ModelSection
    run_dir: Path
    num_optimizer_steps: int
    needs: frozenset[str] = frozenset()
    patches: tuple[tuple[str, Callable[[Module], None]], ...] = ()
    shard_units: tuple[str, ...] = ()
    world: World = field(default_factory=SoloWorld)
    learns: bool = True
    critic: CriticSection | None = None
    model: ModelAdapter | None = None
    strategy: Strategy | None = None

    def require_model(self) -> ModelAdapter:
        """The model adapter; `RuntimeError` for what is built before it."""
        return _built(self.model, "model adapter")

    def require_strategy(self) -> Strategy:
        """The strategy; `RuntimeError` for what is built before it."""
        return _built(self.strategy, "strategy")


def _built(part: Item | None, name: str) -> Item:
    if part is None:
        raise RuntimeError(f"the {name} is not built yet")
    return part


class AdvantageFunction(Protocol):
    """Batch to advantages; reads `rewards_B`, `scored_B`, `group_B`, `mask_BT`, `token_rewards_BT`."""

    def __call__(self, batch: Batch, world: World, *, config: Section) -> Advantages:
        """Rows that are not scored get 0; siblings are found by `group_B`, never by position."""


class LossFunction(Protocol):
    """The loss before reduction."""

    def __call__(self, inputs: LossInputs, *, config: Section) -> LossOutput:
        """Values per token [B, T] or per sequence [B]; never reduced here."""


class KLFunction(Protocol):
    """An estimate of KL(policy || reference) per token."""

    def __call__(self, logprobs_BT: Tensor, ref_logprobs_BT: Tensor, *, config: Section) -> Tensor | KLOutput:
        """Values [B, T], or these with metrics per token."""


class FilterFunction(Protocol):
    """Decides which groups train."""

    def __call__(self, group: Group, *, config: Section) -> bool:
        """True keeps the group."""


class SelectorFunction(Protocol):
    """Decides which tokens train."""

    def __call__(self, batch: Batch, world: World, *, config: Section) -> Tensor:
        """A bool mask [B, T]; it is intersected with the batch's."""


class CorrectionFunction(Protocol):
    """Weighs the gap between engine and trainer."""

    def __call__(self, batch: Batch, world: World, *, config: Section) -> Corrected:
        """Reads `engine_logprobs_BT` and `old_logprobs_BT`."""
