"""Progress for people: a live display on a terminal, one plain line a step elsewhere, as in the log of a job."""

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal

from pydantic import Field

from lightrft_core.data import Group, Rollout, StepReport
from lightrft_core.printable import one_line
from lightrft_core.protocols import RunStatus, Setup
from lightrft_core.sections import Section
from lightrft_core.trackers.wording import duration, fixed, health, held_out, pace

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

_BARS: Final = "▁▂▃▄▅▆▇█"
_GAP, _BAR_FROM = 2, 60  # columns between the cells of a line; width of a terminal that has room for a bar
_LOSS_NOTE: Final = (
    "note: policy_loss need not fall: on-policy every ratio is 1 and its value is that of the advantages, which are "
    "centred around 0 by most algorithms; only its gradient counts. Watch reward and accuracy."
)


class ConsoleConfig(Section):
    """How progress is shown."""

    style: Literal["auto", "live", "lines"] = "auto"
    """`live` redraws in place, `lines` prints one line a step; `auto` is live on a terminal."""
    every: int = Field(default=1, ge=1)
    """Print a line only every so many steps."""
    samples: bool = True
    """Show the best and the worst completion of the step, in the live display."""


class Course:
    """What the display remembers between steps: times for the ETA, rewards for the curve."""

    def __init__(self, num_steps: int | None, clock: Callable[[], float]) -> None:
        self.num_steps, self._clock = num_steps, clock
        self._times: deque[float] = deque([clock()], maxlen=21)
        self.rewards: deque[float] = deque(maxlen=30)

    def note(self, report: StepReport) -> None:
        """A step is done."""
        self._times.append(self._clock())
        if "reward/mean" in report.metrics:
            self.rewards.append(report.metrics["reward/mean"])

    def seconds_left(self, step: int) -> float | None:
        """Time to the last step at the pace of the last 20, evaluations included; None where the end is unknown."""
        if self.num_steps is None or len(self._times) < 2:
            return None
        step_seconds = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        return step_seconds * max(self.num_steps - step, 0)


class ConsoleTracker:
    """Shows each step on stdout."""

    def __init__(self, config: ConsoleConfig, setup: Setup, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._is_main = setup.world.rank == 0
        self._course = Course(setup.run.steps, clock)
        self._live: Live | None = None
        self._is_live = config.style == "live" or (config.style == "auto" and sys.stdout.isatty())
        self._is_explained = False

    def log(self, report: StepReport) -> None:
        """One step."""
        if not self._is_main:
            return
        self._course.note(report)
        self._explain(report)
        if self._is_live:
            self._show(report)
        elif report.step % self._config.every == 0 or report.step == self._course.num_steps:
            print(step_line(report, self._course), flush=True)

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """One evaluation, on a line that stays."""
        if self._is_main:
            numbers = "  ".join(f"{label} {value}" for label, value in held_out(metrics))
            print(f"evaluation at step {step}: {numbers}", flush=True)

    def close(self, status: RunStatus) -> None:
        """Leave the last state on the screen and give the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _explain(self, report: StepReport) -> None:
        if not self._is_explained and "train/policy_loss" in report.metrics:
            self._is_explained = True
            print(_LOSS_NOTE, flush=True)

    def _show(self, report: StepReport) -> None:
        from rich.console import Console
        from rich.live import Live

        if self._live is None:
            # the live display takes over stdout and stderr, so that prints and warnings appear above it
            self._live = Live(console=Console(highlight=False), refresh_per_second=4)
            self._live.start()
        samples = _extremes(report.groups) if self._config.samples else []
        self._live.update(display(report, self._course, samples, self._live.console), refresh=True)


def step_line(report: StepReport, course: Course) -> str:
    """One step as a plain line."""
    total = f"/{course.num_steps}" if course.num_steps else ""
    numbers = [f"{label} {value}" for label, value in health(report.metrics)]
    phases = " ".join(f"{phase} {pace(seconds)}" for phase, seconds in report.seconds.items())
    left = course.seconds_left(report.step)
    eta = [f"eta {duration(left)}"] if left is not None else []
    return "  ".join([f"step {report.step}{total}", *numbers, *([phases] if phases else []), *eta])


def display(
    report: StepReport, course: Course, samples: Sequence[tuple[str, Rollout]], console: "Console"
) -> "RenderableType":
    """The live display: progress, the reward's course, health figures, seconds by phase, two completions."""
    from rich.console import Group as Stack
    from rich.text import Text

    figures = Text("  ").join(
        Text.assemble((f"{label} ", "dim"), (value, "bold")) for label, value in health(report.metrics)
    )
    parts: list[RenderableType] = [_progress(report.step, course, console.width), figures, _phases(report.seconds)]
    for name, rollout in samples:
        score = "-" if rollout.reward is None else fixed(rollout.reward)
        text = one_line(rollout.text, max(console.width - len(name) - len(score) - 4, 20))
        parts.append(Text.assemble((f"{name} {score}  ", "dim"), text, overflow="ellipsis", no_wrap=True))
    return Stack(*parts)


def sparkline(values: Sequence[float]) -> str:
    """The course of some numbers as a row of small bars."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    span = (high - low) or 1.0
    return "".join(_BARS[min(int((value - low) / span * len(_BARS)), len(_BARS) - 1)] for value in values)


def _progress(step: int, course: Course, width: int) -> "Table":
    """One line: the curve shows as many of the last rewards as there is room for."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    left = course.seconds_left(step)
    bar = min(30, width // 4) if course.num_steps and width >= _BAR_FROM else 0
    texts = [f"step {step}/{course.num_steps or '?'}", f"eta {duration(left)}" if left is not None else "", "reward "]
    room = width - bar - sum(map(len, texts)) - _GAP * len(texts)
    row = Table.grid(padding=(0, _GAP, 0, 0))
    cells: list[RenderableType] = [Text(texts[0], style="bold")]
    if bar:
        cells.append(ProgressBar(total=course.num_steps, completed=step, width=bar))
    cells.append(Text(texts[1]))
    cells.append(Text.assemble((texts[2], "dim"), sparkline(list(course.rewards)[-room:] if room > 0 else [])))
    row.add_row(*cells)
    return row


def _phases(seconds: Mapping[str, float]) -> "RenderableType":
    from rich.text import Text

    total = sum(seconds.values()) or 1.0
    parts = [Text(f"{phase} {pace(taken)} ({taken / total:.0%})") for phase, taken in seconds.items()]
    return Text("  ", style="dim").join(parts)


def _extremes(groups: Sequence[Group]) -> list[tuple[str, Rollout]]:
    """The best and the worst completion among those that were scored."""
    scored = [rollout for group in groups for rollout in group.rollouts if rollout.reward is not None]
    if len(scored) < 2:
        return []
    ranked = sorted(scored, key=lambda rollout: rollout.reward or 0.0)
    return [("best", ranked[-1]), ("worst", ranked[0])]
