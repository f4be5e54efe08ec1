"""The sections of a run file that core itself owns, and the bases that components extend.

Every section refuses unknown keys and is frozen. The sentence under a field is its documentation: `lightrft config
schema` and `lightrft plugins show` print it.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Aggregation = Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Schedule = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
]
Feature = Literal["scale", "shift"]  # of all rewards: what they are multiplied by, and what is added to them


class Idle(NamedTuple):
    """Why an option does nothing: `because` is the option (or `use`) that makes it so; `reason` is a sentence."""

    because: str
    reason: str


class Section(BaseModel):
    """Base of every section; a component's options are a subclass."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)

    def idle(self) -> Mapping[str, Idle]:
        """Options that do nothing beside the others: setting one is refused, the resolved file leaves it out."""
        return {}

    def ignores(self) -> frozenset[Feature]:
        """Of an advantage: what of the rewards it takes out again, so that a shaper need not set it."""
        return frozenset()

    def undone_by(self, ignored: frozenset[Feature]) -> Mapping[str, str]:
        """Of a shaper: the options that do nothing where these are ignored, with the reason; "" is all of it."""
        return {}

    def exporter(self) -> tuple[str, Mapping[str, object]] | None:
        """Of a strategy: another's name and options that export this one's checkpoints in one process, on any machine.

        None where that takes the strategy itself.
        """
        return None


class RunSection(Section):
    """Where the run lives, how long it goes, and its seed."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run's folder; by default the run file's name, date and time."""
    about: str | None = None
    """A sentence about the run, printed when it begins."""
    dir: str = "runs"
    """Folder that holds the runs."""
    resume: bool = False
    """Go on with the run of this name where it exists, else start it: the same command serves for both, e.g. in a job
    script that is started again. `name` is by default the run file's name alone then."""
    seed: int = Field(default=42, ge=0)
    """Everything random derives from it."""
    steps: int | None = Field(default=None, ge=1)
    """Number of rollout steps; by default as many as `episodes` passes over the prompts take."""
    episodes: float = Field(default=1.0, gt=0)
    """Passes over the prompts, where `steps` is not given."""
    max_time: str | None = Field(default=None, pattern=r"^(\d+(\.\d+)?[dhms])+$")
    """Save, stop and exit 75 before this much time is over: `3h50m`, `90s`."""
    watchdog: str | None = Field(default="30m", pattern=r"^(\d+(\.\d+)?[dhms])+$")
    """Print what every rank is doing when a phase of a step lasts longer than this; null never does."""
    watchdog_action: Literal["report", "stop"] = "report"
    """`stop` ends the run after it printed that, with exit code 1."""
    max_unscored_fraction: Fraction = 0.2
    """Stop when more than this share of samples could not be scored ..."""
    unscored_patience: int = Field(default=3, ge=1)
    """... in this many steps in a row."""


class MuonSection(Section):
    """What Muon adds to AdamW's options (arXiv:2502.16982)."""

    momentum: float = Field(default=0.95, ge=0, lt=1)
    """What one step keeps of the average of gradients."""
    nesterov: bool = True
    """Move on towards the present gradient before orthogonalising."""
    ns_steps: int = Field(default=5, ge=1, lt=100)
    """Newton-Schulz iterations that orthogonalise a matrix."""
    adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """How `lr` follows a matrix's shape: moving weights as far as AdamW would, so that one rate serves both, or as in
    Muon's first form."""


class LearningSection(Section):
    """An optimizer and its schedule, for whatever learns by them."""

    optimizer: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    """`adamw_8bit` keeps the moments of matrices in 8 bits (bitsandbytes). `muon` orthogonalises the updates of the
    blocks' matrices and leaves the rest to AdamW."""
    muon: MuonSection | None = None
    """Options of the optimizer `muon`: `{momentum: 0.9}`."""
    lr: float = Field(default=1e-6, gt=0)
    """Peak learning rate."""
    schedule: Schedule = "constant"
    """Course of the learning rate after the warm-up, by transformers' names."""
    min_lr_ratio: Fraction = 0.1
    """Lowest rate of `cosine_with_min_lr`, `polynomial` and `warmup_stable_decay`, as a share of `lr`."""
    num_cycles: int = Field(default=1, ge=1)
    """How often `cosine_with_restarts` goes down."""
    power: float = Field(default=1.0, gt=0)
    """Power of `polynomial`; 1 is a straight line."""
    decay_ratio: Fraction = 0.1
    """Share of all optimizer steps over which `warmup_stable_decay` goes down, at the end."""
    warmup_ratio: Fraction = 0.0
    """Share of all optimizer steps over which the rate rises from zero."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """The same as a number of optimizer steps; wins over the ratio."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay; norms and biases are left out."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Clip the global gradient norm to this; 0 means no clipping."""

    @model_validator(mode="before")
    @classmethod
    def _options_of_muon(cls, given: object) -> object:
        """Written out where they count, so that the resolved file shows them."""
        if isinstance(given, dict) and given.get("optimizer") == "muon" and given.get("muon") is None:
            return {**given, "muon": {}}
        return given

    def idle(self) -> Mapping[str, Idle]:
        """Options of other schedules and optimizers."""
        users = {
            "min_lr_ratio": ("cosine_with_min_lr", "polynomial", "warmup_stable_decay"),
            "num_cycles": ("cosine_with_restarts",),
            "power": ("polynomial",),
            "decay_ratio": ("warmup_stable_decay",),
        }
        found = {
            option: Idle("schedule", f"schedule is {self.schedule}. Did you mean schedule '{names[0]}'?")
            for option, names in users.items()
            if self.schedule not in names
        }
        if self.optimizer != "muon":
            found["muon"] = Idle("optimizer", f"optimizer is {self.optimizer}. Did you mean optimizer 'muon'?")
        return found


class MixInSection(Section):
    """Supervised examples that every optimizer step learns beside the policy loss, so that a skill is not lost."""

    path: tuple[str, ...] = Field(min_length=1)
    """Files of examples: rows with `prompt` and `response`, or with `messages` whose last is the answer."""
    coef: float = Field(default=0.05, gt=0)
    """Weight of their loss, the mean over their tokens of -log p."""
    batch_size: int = Field(default=16, ge=1)
    """Examples of one optimizer step over all ranks."""
    max_tokens: int = Field(default=2048, ge=2)
    """Longest example, prompt included; longer ones are left out and counted."""

    @field_validator("path", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class OptimSection(LearningSection):
    """The optimizer and its schedule, and how a rollout is cut into optimizer steps."""

    batch_size: int | None = Field(default=None, ge=1)
    """Samples per optimizer step over all ranks; by default everything that one rollout step yields."""
    epochs: int = Field(default=1, ge=1)
    """Passes over each rollout."""
    max_skipped_steps: int = Field(default=5, ge=1)
    """Stop after this many optimizer steps in a row were skipped for non-finite gradients."""
    ptx: MixInSection | None = None
    """Supervised examples to mix in: `{path: ./examples.jsonl, coef: 0.05}`; by default there are none."""


class CriticSection(LearningSection):
    """The critic of advantages that need values: a model with a value head, trained beside the policy."""

    path: str | None = Field(default=None, min_length=1)
    """Model that it starts from; by default the policy's. A reward model's or critic's head is taken over."""
    lr: float = Field(default=9e-6, gt=0)
    """Peak learning rate."""
    clip: float | None = Field(default=0.2, gt=0)
    """Largest change of a value in one rollout step that the loss rewards; null does not limit it."""
    policy_freeze_steps: int = Field(default=0, ge=0)
    """Rollout steps at the start in which the critic learns and the policy stays as it is."""
    head: str = Field(default="score", pattern=r"^[A-Za-z_]\w*$")
    """Name of the value head in the model's files: `score` is that of Hugging Face's reward models."""
    export: bool = False
    """`lightrft export` writes the critic too, as a reward model, into the folder `critic`."""


class TaskSection(Section):
    """Options that every task has."""

    max_prompt_tokens: int = Field(default=2048, ge=1)
    """Longest rendered prompt, in tokens."""
    long_prompts: Literal["drop", "error"] = "drop"
    """Prompts over the limit are dropped and counted, or an error; they are never cut."""
    system_prompt: str | None = None
    """Added as a system message where a prompt has none."""
    max_prompts: int | None = Field(default=None, ge=1)
    """Use only the first so many."""
    shuffle: bool = True
    """A new order in every pass, from the run's seed."""


class SamplerSection(Section):
    """How many completions are drawn, and how."""

    group_size: int = Field(default=8, ge=1)
    """Sibling rollouts of each prompt."""
    prompts_per_step: int = Field(default=16, ge=1)
    """Prompts of one rollout step over all ranks."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Longest completion, in tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; the trainer's log-probabilities use it too."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; 1 is off."""
    top_k: int = Field(default=0, ge=0)
    """Draw from the k most likely tokens; 0 is off."""
    min_p: Fraction = 0.0
    """Drop tokens less likely than this share of the likeliest; 0 is off."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion."""
    max_refill_rounds: int = Field(default=4, ge=0)
    """How often groups that the filters dropped are drawn anew before the step goes on with fewer."""


class RewardSection(Section):
    """Options that every reward has."""

    name: str | None = None
    """Name of its score in logs; by default the reward's own."""
    weight: float = 1.0
    """Its weight in the sum."""
    labels: tuple[str, ...] | None = None
    """Score only prompts with one of these labels; by default all."""
    timeout: float = Field(default=10.0, gt=0)
    """Seconds that one sample may take; then it counts as unscored."""
    num_workers: int = Field(default=1, ge=1)
    """Worker processes that score at the same time; only isolated rewards have them."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Address space that a worker may take, in GiB; more raises MemoryError there. By default no limit."""
    env: tuple[str, ...] = ()
    """Names of environment variables, such as an API key, that a worker may see beside the harmless ones."""


class LossSection(Section):
    """Options that every loss has."""

    aggregation: Aggregation = "seq_mean_token_mean"
    """How per-token values become one number, with counts of the whole optimizer step over all ranks."""
    token_budget: int | None = Field(default=None, ge=1)
    """Constant divisor of `seq_mean_token_sum_norm`; by default the sampler's `max_new_tokens`."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus."""


class KLSection(Section):
    """Options that every KL estimator has."""

    place: Literal["loss", "reward"] = "loss"
    """Add it to the loss, or subtract it from the rewards; never both."""
    coef: float = Field(default=0.001, ge=0)
    """Weight; the start value where a target is set."""
    target: float | None = Field(default=None, gt=0)
    """Steer the weight so that the measured KL nears this value (adaptive controller)."""
    horizon: int = Field(default=10000, ge=1)
    """Samples over which the adaptive controller acts."""
    refresh_every: int | None = Field(default=None, ge=1)
    """Rollout steps after which the policy as it then is becomes the reference, again and again; by default never."""


class ModelSection(Section):
    """Options that every model adapter has."""

    path: str = Field(min_length=1)
    """Folder of a Hugging Face model, or its id on a hub."""
    revision: str | None = None
    """Hub revision to pin."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for code that you have read."""


class EvaluationSection(Section):
    """Held-out measurement: the same draw, sample, score with its own task, over the whole set."""

    every: int | None = Field(default=None, ge=1)
    """Evaluate every so many steps; by default only at the start and the end."""
    at_start: bool = True
    """Evaluate before the first step."""
    at_end: bool = True
    """Evaluate after the last step."""
    num_samples: int = Field(default=1, ge=1)
    """Completions per prompt."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; 1 is off."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """By default the sampler's."""
    metric: str | None = None
    """Score to report first; by default `accuracy` where a reward gives it, else the reward."""


class CheckpointSection(Section):
    """When state is saved, and how much of it is kept. The end of a run always saves."""

    every: int | None = Field(default=None, ge=1)
    """Save every so many steps; by default only at the end."""
    every_episodes: int | None = Field(default=None, ge=1)
    """Save when every so many passes over the prompts end, counted as by `run.episodes`; `every` adds its own steps."""
    keep: int = Field(default=3, ge=1)
    """Newest checkpoints to keep; older ones go after a new one is published."""
    max_gb: float | None = Field(default=None, gt=0)
    """Largest size of all checkpoints together, in GiB: older ones go until they fit, the newest always stays; by
    default `keep` alone decides."""
    background: bool = False
    """Train on while a checkpoint is written, from a copy of weights and optimizer state in CPU memory; what ends a run
    waits for it. Off: training waits for every checkpoint."""
    export: bool = False
    """Write the policy into each checkpoint as a Hugging Face folder too, `hf`, ready to be served or evaluated."""
    resumable: bool = True
    """Keep what `--resume` goes on from: optimizer state, full-precision weights, and the state of the run. Off: a
    checkpoint is the folder `hf` alone, a sixth to a third of the size; a run that is stopped early, by a signal or
    `run.max_time`, still saves everything, so that it can go on."""

    @property
    def max_bytes(self) -> float | None:
        """`max_gb` in bytes."""
        return None if self.max_gb is None else self.max_gb * (1 << 30)


class SelfTestSection(Section):
    """Checks on the user's own data before the first step."""

    enabled: bool = True
    """Run them."""
    rollouts: int = Field(default=8, ge=2)
    """Number of rollouts to check on."""
    tolerance: float = Field(default=1e-3, gt=0)
    """Largest difference of log-probabilities, in nats per token, in fp32; in bf16 30 times as much on average."""


class EngineGapSection(Section):
    """How far the engine's log-probabilities may be from the trainer's, on average over the tokens of a step."""

    warn_above: float | None = Field(default=0.05, gt=0)
    """Warn when a step's mean gap becomes larger, in nats per token; null never does. The self-test allows 0.001 in
    fp32 and 0.03 in bf16."""
    stop_above: float | None = Field(default=None, gt=0)
    """Stop before a larger gap changes a weight, with the state before that step saved; by default never. At 1 the two
    disagree about each token by a factor of e."""

    @model_validator(mode="after")
    def _warns_first(self) -> "EngineGapSection":
        if self.stop_above is not None and self.warn_above is not None and self.warn_above > self.stop_above:
            raise ValueError("warn_above is larger than stop_above: the run would stop before it warns")
        return self


class RolloutsSection(Section):
    """The store of everything the model wrote."""

    save: bool = True
    """Write every scored rollout to rollouts.sqlite."""


class PlotsSection(Section):
    """Curves as PNG in the run's plots folder."""

    every: int | None = Field(default=None, ge=1)
    """Draw every so many steps; always at the end."""
