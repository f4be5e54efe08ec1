"""What a hook yields: frozen facts about a component, so that listing plugins imports none of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One pluggable part.

    `target` and `config` are `"package.module:Name"`, imported only when a run uses the component; the module that
    holds `config` must import neither torch nor transformers. `needs` and `provides` are capability words (`logprobs`,
    `ref_logprobs`, `entropy`, `values`, `images`, ...). `requires` are requirement strings such as `"vllm>=0.28"`,
    checked from package metadata without an import; `"a>=1 | b>=1"` where two distributions bring the same module.
    """

    name: str
    target: str
    summary: str
    config: str | None = None
    needs: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()
    requires: tuple[str, ...] = ()
    paper: str = ""
    formula: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardComponent(Component):
    """A reward. Isolated ones are scored in a worker process that a time limit can end.

    `example` is a response that it likes, with `{reference}` for the right answer: `#### {reference}`. `lightrft train
    --dry-run` calls the reward on it; without one it is called on the bare reference.
    """

    is_isolated: bool = True
    example: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelComponent(Component):
    """A model adapter or patch, chosen by the `model_type` of the model's config.json; `"*"` takes any.

    `shard_units` of a patch are class names of modules that sharding strategies gather as one, where the model's own
    blocks (`_no_split_modules`) are not the right ones.
    """

    model_types: tuple[str, ...] = ("*",)
    shard_units: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """A named bundle of run-file sections: data only; the user's keys override it."""

    name: str
    summary: str
    sections: Mapping[str, Any] = field(default_factory=dict)  # Any: YAML values
    formula: str = ""
    paper: str = ""
    when: str = ""
    requires: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A Typer app at `target`, mounted as `lightrft NAME`."""

    name: str
    target: str
    summary: str
    requires: tuple[str, ...] = ()


Descriptor = Component | Algorithm | Command
