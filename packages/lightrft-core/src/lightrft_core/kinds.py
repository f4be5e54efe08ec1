"""The kinds of component: which hook offers them, which run-file section names them, how many a run may name."""

from dataclasses import dataclass
from typing import Literal

from lightrft_core.descriptors import Algorithm, Command, Component, ModelComponent, RewardComponent
from lightrft_core.sections import (
    KLSection,
    LossSection,
    ModelSection,
    RewardSection,
    SamplerSection,
    Section,
    TaskSection,
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table."""

    name: str
    hook: str
    section: str
    count: Literal["one", "optional", "many", "none"]
    descriptor: type[Component] | type[Algorithm] | type[Command] = Component
    config_base: type[Section] = Section
    default: str | None = None


KINDS: tuple[Kind, ...] = (
    Kind("algorithm", "lightrft_algorithms", "algorithm", "optional", Algorithm),
    Kind("task", "lightrft_tasks", "task", "one", config_base=TaskSection, default="jsonl"),
    Kind("sampler", "lightrft_samplers", "sampler", "one", config_base=SamplerSection, default="plain"),
    Kind("engine", "lightrft_engines", "engine", "one", default="embedded"),
    Kind("reward", "lightrft_rewards", "rewards", "many", RewardComponent, RewardSection),
    Kind("shaper", "lightrft_shapers", "shapers", "many"),
    Kind("filter", "lightrft_filters", "filters", "many"),
    Kind("advantage", "lightrft_advantages", "advantage", "one", default="group_norm"),
    Kind("kl", "lightrft_kls", "kl", "optional", config_base=KLSection, default="k3"),
    Kind("loss", "lightrft_losses", "loss", "one", config_base=LossSection, default="clip"),
    Kind("selector", "lightrft_selectors", "selectors", "many"),
    Kind("correction", "lightrft_corrections", "correction", "optional"),
    Kind("strategy", "lightrft_strategies", "strategy", "one", default="single"),
    Kind("model", "lightrft_models", "model", "one", ModelComponent, ModelSection),
    Kind("patch", "lightrft_patches", "model.patches", "none", ModelComponent),
    Kind("tracker", "lightrft_trackers", "trackers", "many"),
    Kind("callback", "lightrft_callbacks", "callbacks", "many"),
    Kind("command", "lightrft_commands", "", "none", Command),
)

BY_NAME = {kind.name: kind for kind in KINDS}
BY_SECTION = {kind.section: kind for kind in KINDS if kind.count != "none"}
