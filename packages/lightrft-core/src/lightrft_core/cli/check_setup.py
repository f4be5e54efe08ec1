"""A real setup for the conformance kit: the shipped quickstart model under the adapter and strategy that are installed.

Engines, strategies and adapters do little with toys, so `lightrft plugins check` gives them the real thing if it can.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightrft_core.descriptors import Component
from lightrft_core.errors import UserError
from lightrft_core.plugins import Plugins
from lightrft_core.protocols import Setup
from lightrft_core.sections import ModelSection, OptimSection, RunSection, SamplerSection

ADAPTER, STRATEGY = "lightrft-engines:text", "lightrft-engines:single"
PARTS = {"model": (), "strategy": ("model",), "engine": ("model", "strategy")}  # what each kind is built on


def quickstart_model() -> Path:
    """The small model that core ships."""
    return Path(__file__).parents[1] / "recipes" / "quickstart-model"


def options_for(kind: str) -> Mapping[str, Any]:  # Any: YAML values
    """Options without a default that a component of the kind needs."""
    return {"path": str(quickstart_model())} if kind == "model" else {}


def real_setup(kind: str, plugins: Plugins, run_dir: Path) -> Setup | None:
    """A setup with the real parts that a kind is built on; None for other kinds, and where they are not installed."""
    if kind not in PARTS or not quickstart_model().is_dir():
        return None
    try:
        adapter = plugins.find("model", ADAPTER, where="lightrft plugins check")
        strategy = plugins.find("strategy", STRATEGY, where="lightrft plugins check")
    except UserError:
        return None
    assert isinstance(adapter, Component)
    assert isinstance(strategy, Component)
    section = plugins.config_class("model", adapter).model_validate(options_for("model"))
    assert isinstance(section, ModelSection)
    setup = Setup(
        run=RunSection(seed=0),
        optim=OptimSection(lr=1e-3),
        sampler=SamplerSection(group_size=2, max_new_tokens=8),
        model_section=section,
        run_dir=run_dir,
        num_optimizer_steps=4,
        needs=frozenset({"ref_logprobs"}),
    )
    if "model" in PARTS[kind]:
        setup.model = plugins.target(adapter)(section, setup)
    if "strategy" in PARTS[kind]:
        setup.strategy = plugins.target(strategy)(plugins.config_class("strategy", strategy)(), setup)
    return setup
