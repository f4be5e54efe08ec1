"""What `lightrft train` prints at the end: before and after, samples of both, where the plot is, what to try next."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from lightrft_core.rundir import RunDir
NUM_SAMPLES = 3


def print_summary(evaluations: Mapping[int, Mapping[str, float]], run_dir: "RunDir") -> None:
    """Print it to stdout."""
    from rich.console import Console

    console = Console(highlight=False)
    steps = sorted(evaluations)
    if len(steps) > 1:
        first, last = steps[0], steps[-1]
        console.print(_metrics_table(first, last, evaluations[first], evaluations[last]))
        if run_dir.rollouts.exists():
            console.print(_samples_table(run_dir, first, last))
    for plot in sorted(run_dir.plots.glob("*.png")):
        console.print(f"plot  {plot}", markup=False, soft_wrap=True)
    console.print("next:")
    for command in (
        f"lightrft rollouts {run_dir.path} --max-reward 0",
        f"lightrft runs show {run_dir.path}",
        f"lightrft export {run_dir.path} --to my-model",
    ):
        console.print(f"  {command}", markup=False, soft_wrap=True)


def _metrics_table(first: int, last: int, before: Mapping[str, float], after: Mapping[str, float]) -> "Table":
    from rich.table import Table

    table = Table(title="held-out evaluation", title_justify="left")
    for heading in ("metric", f"step {first}", f"step {last}", "change"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    shown: set[tuple[float, float]] = set()
    for name in sorted(before.keys() & after.keys(), key=lambda name: (name != "eval/score", name)):
        if (before[name], after[name]) in shown or before[name] == after[name]:
            continue  # often several names for one figure, or nothing to tell
        shown.add((before[name], after[name]))
        change = after[name] - before[name]
        table.add_row(name, f"{before[name]:.3f}", f"{after[name]:.3f}", f"{change:+.3f}")
    return table


def _samples_table(run_dir: "RunDir", first: int, last: int) -> "Table":
    """The same prompts answered by both; those whose reward changed come first."""
    from rich.table import Table
    from rich.text import Text

    from lightrft_core.printable import printable
    from lightrft_core.store import RolloutStore

    store = RolloutStore(run_dir.rollouts, readonly=True)
    before, after = (
        {row.prompt_id: row for row in store.search(step=step, phase="eval", limit=200)} for step in (first, last)
    )
    pairs = [(before[prompt_id], row) for prompt_id, row in after.items() if prompt_id in before]
    store.close()
    pairs.sort(key=lambda pair: (pair[0].reward or 0.0) - (pair[1].reward or 0.0))
    table = Table(title="samples", title_justify="left", show_lines=True)
    for heading in ("prompt", f"step {first}", f"step {last}"):
        table.add_column(heading, overflow="fold")
    for old, new in pairs[:NUM_SAMPLES]:
        texts = (old.prompt_text, f"{old.text}\n[{_shown(old.reward)}]", f"{new.text}\n[{_shown(new.reward)}]")
        table.add_row(*(Text(printable(text)) for text in texts))
    return table


def _shown(reward: float | None) -> str:
    return "unscored" if reward is None else f"{reward:.3g}"
