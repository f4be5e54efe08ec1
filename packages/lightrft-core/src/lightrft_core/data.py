"""What flows through a step: Prompt -> Rollout -> Group -> Batch -> StepReport.

Prompts, rollouts and groups are plain Python: cheap to store, free of torch. A batch holds tensors that a model adapter
made; core only slices and passes them. Letters in names: B rows (rollouts), T completion tokens.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from lightrft_core.gap import Gap

Tensor: TypeAlias = Any  # a torch.Tensor; core must not import torch, so it cannot be named here
FinishReason = Literal["stop", "length", "abort"]
MediaKind = Literal["image", "video", "audio"]


@dataclass(frozen=True, slots=True)
class Media:
    """One image, video or audio clip: a local path or the encoded bytes. Only the model adapter decodes it."""

    kind: MediaKind
    source: str | bytes


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem to answer.

    `id` is its identity everywhere (never a position). `messages` are chat messages (`role`, `content`; the content is
    text, where `<image>`, `<video>`, `<audio>` mark the places of `media` in order). `reference` is the right answer
    where the task has one; `label` routes to rewards.
    """

    id: str
    messages: tuple[Mapping[str, str], ...]
    media: tuple[Media, ...] = ()
    label: str | None = None
    reference: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)  # Any: whatever the data row held


@dataclass(slots=True)
class Rollout:
    """One completion of a prompt.

    `token_ids`, `loss_mask` and `engine_logprobs` have one entry per completion token; the end-of-text token, where the
    engine sampled it, is one of them and is trained. `engine_logprobs` are those of the distribution that was sampled
    (temperature and truncation applied). `reward` is the weighted sum of the rewards, None while or if unscored;
    `shaped_reward` is what the shapers make of it; `scores` holds every named part.
    """

    prompt_id: str
    index: int
    token_ids: tuple[int, ...]
    text: str
    engine_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int
    loss_mask: tuple[bool, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    reward: float | None = None
    shaped_reward: float | None = None
    unscored: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.loss_mask:
            self.loss_mask = (True,) * len(self.token_ids)
        if not len(self.token_ids) == len(self.loss_mask) == len(self.engine_logprobs):
            raise ValueError(
                f"rollout {self.prompt_id}#{self.index}: {len(self.token_ids)} token ids, {len(self.loss_mask)} mask "
                f"entries and {len(self.engine_logprobs)} log-probabilities; they must be as many"
            )


@dataclass(slots=True)
class Group:
    """A prompt and its sibling rollouts: the unit of filtering and of baselines."""

    prompt: Prompt
    prompt_token_ids: tuple[int, ...]
    rollouts: list[Rollout]

    def rewards(self, name: str | None = None) -> list[float]:
        """The scored siblings' rewards, or their score called `name` where they have it."""
        scored = [rollout for rollout in self.rollouts if rollout.reward is not None]
        if name is None:
            return [rollout.reward for rollout in scored if rollout.reward is not None]
        return [rollout.scores[name] for rollout in scored if name in rollout.scores]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. `top_k` 0 and `top_p` 1 mean no truncation; `temperature` 0 means greedy."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt to continue `len(seeds)` times; each sibling's draws depend on its own seed alone."""

    prompt_id: str
    prompt_token_ids: tuple[int, ...]
    seeds: tuple[int, ...]
    sampling: Sampling
    media: tuple[Media, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine returns for one sibling; `logprobs` are of the distribution that was sampled."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """What a reward sees of one rollout. `response` is the completion alone, never prompt plus completion."""

    response: str
    response_token_ids: tuple[int, ...]
    prompt: Prompt
    finish_reason: FinishReason = "stop"

    @property
    def reference(self) -> str | None:
        """The right answer, where the task has one."""
        return self.prompt.reference

    @property
    def label(self) -> str | None:
        """The label that routed this rollout here."""
        return self.prompt.label


@dataclass(frozen=True, slots=True)
class Score:
    """A reward's verdict: a finite value with named parts, or None with the reason why it could not be scored."""

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None


@dataclass(slots=True)
class Batch:
    """B rollouts as tensors, rows of one group adjacent.

    `completion_ids_BT` is right-padded to the longest completion T. `mask_BT` (bool) marks the tokens that train;
    `lengths_B` counts the completion tokens that exist. `group_B` numbers the groups (siblings share a number).
    `rewards_B` are the shaped rewards; rows that could not be scored are False in `scored_B` and train nothing.
    `truncated_B` (bool) marks completions that a limit or an abort cut off.
    `token_rewards_BT` adds per-token rewards (a KL penalty), `weights_BT` multiplies each token's loss (corrections).
    Fields that the algorithm does not need stay None. `media` belongs to the model adapter alone.
    """

    prompt_ids: tuple[str, ...]
    prompt_token_ids: tuple[tuple[int, ...], ...]
    completion_ids_BT: Tensor
    mask_BT: Tensor
    lengths_B: Tensor
    group_B: Tensor
    rewards_B: Tensor
    scored_B: Tensor
    engine_logprobs_BT: Tensor
    temperature: float = 1.0
    truncated_B: Tensor | None = None
    old_logprobs_BT: Tensor | None = None
    ref_logprobs_BT: Tensor | None = None
    entropy_BT: Tensor | None = None
    values_BT: Tensor | None = None
    token_rewards_BT: Tensor | None = None
    advantages_BT: Tensor | None = None
    returns_BT: Tensor | None = None
    weights_BT: Tensor | None = None
    media: tuple[Mapping[str, Any], ...] = ()  # Any: opaque to all but the model adapter; one mapping a row, or empty

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def rows(self, index: Sequence[int]) -> "Batch":
        """The rows named by `index`, in that order; padding is kept."""
        chosen = list(index)

        def pick(value: Any) -> Any:  # Any: a field of any type, returned as the same type
            if isinstance(value, tuple):
                return tuple(value[row] for row in chosen) if value else value
            return value if value is None or isinstance(value, float) else value[chosen]

        return replace(self, **{item.name: pick(getattr(self, item.name)) for item in fields(self)})

    def minibatches(self, num: int, epochs: int, seed: int) -> Iterator["Batch"]:
        """Cut into `num` parts as even as rows allow, in the order drawn; later epochs visit them in another order.

        Tasks shuffle already. Ranks hold every n-th prompt, so the same cut on each of them is the cut of one rank.
        """
        parts = list(range(num))
        for epoch in range(epochs):
            for part in parts:
                yield self.rows(range(part * len(self) // num, (part + 1) * len(self) // num))
            parts.sort(key=lambda part: seed_for(seed, epoch, part))


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What a loss sees of a micro-batch; every tensor is [B, T] unless its name says otherwise.

    `logprobs_BT` carries the gradient. `old_logprobs_BT` is the policy that the step started from.
    """

    logprobs_BT: Tensor
    old_logprobs_BT: Tensor
    advantages_BT: Tensor
    mask_BT: Tensor
    ref_logprobs_BT: Tensor | None = None
    entropy_BT: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss before reduction: `values` per token [B, T] or per sequence [B], metrics in either form."""

    values: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KLOutput:
    """An estimate of the KL, `values` [B, T] in nats, with metrics per token; these are logged as `train/kl_NAME`."""

    values: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one optimizer step did. `metrics` are (sum, count) pairs over all ranks; `skipped` says why, if it was.

    With `rescaled` it was skipped only because losses were scaled up too far, which is mended: no sign of trouble.
    `gap` is how far engine and trainer are apart, over all ranks; None where nothing was measured.
    """

    metrics: Mapping[str, tuple[float, float]]
    grad_norm: float
    lr: float
    skipped: str | None = None
    rescaled: bool = False
    gap: "Gap | None" = None


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of the loop, as trackers and callbacks see it: numbers by name, some rollouts; by phase seconds, and the
    most memory in GiB of any rank.
    """

    step: int
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    groups: Sequence[Group] = ()
    memory: Mapping[str, float] = field(default_factory=dict)

    def by_phase(self) -> dict[str, float]:
        """Seconds and memory by the names under which they are logged."""
        seconds = {f"seconds/{phase}": value for phase, value in self.seconds.items()}
        return seconds | {f"memory/{phase}_gb": value for phase, value in self.memory.items()}


def seed_for(run_seed: int, *parts: int | str) -> int:
    """A 63-bit seed from the run's seed and what it is for (step, prompt id, sibling): the same on every machine."""
    text = "/".join([str(run_seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
