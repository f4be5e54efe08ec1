"""What core itself offers: trackers, and prompts from files."""

from collections.abc import Iterator

from lightrft_core.descriptors import Component
from lightrft_core.hookspecs import hookimpl

LIGHTRFT_API = 1


@hookimpl
def lightrft_trackers() -> Iterator[Component]:
    """Where metrics go."""
    yield Component(
        name="console",
        target="lightrft_core.trackers.console:ConsoleTracker",
        config="lightrft_core.trackers.console:ConsoleConfig",
        summary="Live progress on a terminal, one line a step elsewhere.",
    )
    yield Component(
        name="jsonl",
        target="lightrft_core.trackers.jsonl:JsonlTracker",
        config="lightrft_core.trackers.jsonl:JsonlConfig",
        summary="metrics.jsonl in the run's folder, one object a step.",
    )
    yield Component(
        name="wandb",
        target="lightrft_core.trackers.wandb:WandbTracker",
        config="lightrft_core.trackers.wandb:WandbConfig",
        summary="Weights & Biases, online or offline.",
        requires=("wandb>=0.21",),
    )
    yield Component(
        name="tensorboard",
        target="lightrft_core.trackers.tensorboard:TensorboardTracker",
        config="lightrft_core.trackers.tensorboard:TensorboardConfig",
        summary="TensorBoard event files in the run's folder.",
        requires=("tensorboard>=2.18",),
    )


@hookimpl
def lightrft_tasks() -> Iterator[Component]:
    """Where prompts come from."""
    yield Component(
        name="jsonl",
        target="lightrft_core.tasks.jsonl:JsonlTask",
        config="lightrft_core.tasks.jsonl:JsonlConfig",
        summary="Prompts from json, jsonl, csv or parquet files or a folder of them, mixed with given shares.",
    )
