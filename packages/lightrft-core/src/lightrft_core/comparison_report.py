"""A comparison's figures: per algorithm, means over seeds with intervals."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from lightrft_core.estimates import Estimate, estimate
from lightrft_core.protocols import Json
from lightrft_core.trials import Outcome, Points


@dataclass(frozen=True)
class Row:
    """One algorithm. Estimates are over the seeds that were done, `steps_to_level` over those that reached it."""

    algorithm: str
    num_runs: int
    num_done: int
    first: Estimate | None
    last: Estimate | None
    best: Estimate | None
    rise: Estimate | None
    num_reached: int
    steps_to_level: Estimate | None
    seconds: Estimate | None


@dataclass(frozen=True)
class Report:
    """Rows in the order in which the algorithms were named; `level` is what `steps_to_level` counts to."""

    metric: str
    level: float | None
    rows: tuple[Row, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def num_failed(self) -> int:
        """Trials that failed."""
        return sum(outcome.state not in ("done", "stopped") for outcome in self.outcomes)

    def curves(self) -> dict[str, list[Points]]:
        """Per algorithm the scores of its done runs."""
        done = [outcome for outcome in self.outcomes if outcome.is_done]
        names = dict.fromkeys(outcome.trial.algorithm for outcome in done)
        return {name: [outcome.points for outcome in done if outcome.trial.algorithm == name] for name in names}

    def as_data(self) -> dict[str, Json]:
        """All of it, as JSON."""
        return {
            "metric": self.metric,
            "level": self.level,
            "algorithms": [asdict(row) for row in self.rows],
            "runs": [_run_data(outcome) for outcome in self.outcomes],
        }


def report_of(outcomes: Sequence[Outcome], level: float | None = None) -> Report:
    """The figures. Without a level it is half of the way from the mean first score to the best mean of an algorithm."""
    names = dict.fromkeys(outcome.trial.algorithm for outcome in outcomes)
    metrics = dict.fromkeys(outcome.metric for outcome in outcomes if outcome.points)
    level = _half_way(outcomes) if level is None else level
    rows = tuple(_row(name, [o for o in outcomes if o.trial.algorithm == name], level) for name in names)
    return Report(" and ".join(metrics), level, rows, tuple(outcomes))


def _row(name: str, outcomes: Sequence[Outcome], level: float | None) -> Row:
    done = [outcome for outcome in outcomes if outcome.is_done]
    reached = [outcome.steps_to(level) for outcome in done] if level is not None else []
    steps = [float(step) for step in reached if step is not None]
    return Row(
        algorithm=name,
        num_runs=len(outcomes),
        num_done=len(done),
        first=estimate([outcome.points[0][1] for outcome in done]),
        last=estimate([outcome.points[-1][1] for outcome in done]),
        best=estimate([outcome.best[1] for outcome in done]),
        rise=estimate([outcome.points[-1][1] - outcome.points[0][1] for outcome in done]),
        num_reached=len(steps),
        steps_to_level=estimate(steps),
        seconds=estimate([outcome.seconds for outcome in done]),
    )


def _half_way(outcomes: Sequence[Outcome]) -> float | None:
    done = [outcome for outcome in outcomes if outcome.is_done]
    if not done:
        return None
    start = fmean(outcome.points[0][1] for outcome in done)
    by_name = {o.trial.algorithm: [x.best[1] for x in done if x.trial.algorithm == o.trial.algorithm] for o in done}
    return round((start + max(fmean(scores) for scores in by_name.values())) / 2, 3)


def _run_data(outcome: Outcome) -> dict[str, Json]:
    return {
        "algorithm": outcome.trial.algorithm,
        "seed": outcome.trial.seed,
        "path": str(outcome.trial.run_dir.path),
        "state": outcome.state,
        "reason": outcome.reason,
        "metric": outcome.metric,
        "points": [list(point) for point in outcome.points],
        "seconds": outcome.seconds,
    }
