"""Running the trials of a comparison one after another, each in a process of its own, and reading what they left."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lightrft_core.comparison import Trial
from lightrft_core.errors import ExitCode
from lightrft_core.metrics_file import read_metrics
from lightrft_core.stopping import Stopper

HELD_OUT: Final = "eval/score"
TRAINING: Final = "reward/mean"
_POLL_SECONDS: Final = 0.2
Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended. `state` is `done`, `stopped`, `failed` or `missing`; `points` are (step, score), in order."""

    trial: Trial
    state: str
    reason: str
    metric: str
    points: tuple[tuple[int, float], ...]
    seconds: float

    @property
    def is_done(self) -> bool:
        """Whether it went to its last step and was measured."""
        return self.state == "done" and bool(self.points)

    @property
    def best(self) -> tuple[int, float]:
        """Step and score of the highest score, the earliest of equals. Only where there are points."""
        return max(self.points, key=lambda point: point[1])

    def steps_to(self, level: float) -> int | None:
        """The first step whose score is at least `level`."""
        return next((step for step, score in self.points if score >= level), None)


def run_trials(trials: Sequence[Trial], tell: Callable[[Outcome], None], metric: str | None = None) -> list[Outcome]:
    """Run what is not done yet, telling of every trial as it ends; a trial that fails is an outcome like any other.

    A signal stops the running trial, which saves a checkpoint; the outcomes so far are returned, and the same call goes
    on from there later.
    """
    outcomes: list[Outcome] = []
    with Stopper() as stopper:
        for trial in trials:
            outcome = outcome_of(trial, metric)
            if not outcome.is_done:
                code = _run(trial, stopper)
                outcome = outcome_of(trial, metric, code)
            outcomes.append(outcome)
            tell(outcome)
            if stopper.requested:
                break
    return outcomes


def outcome_of(trial: Trial, metric: str | None = None, code: int | None = None) -> Outcome:
    """What a trial's folder says; `code` is its process's exit code where it just ended.

    Without a metric it is the held-out score, or the mean reward where the run has no evaluation.
    """
    series, status = read_metrics(trial.run_dir.metrics), trial.run_dir.read_status()
    name = metric or (HELD_OUT if HELD_OUT in series else TRAINING)
    seconds = sum(value for key, points in series.items() if key.startswith("seconds/") for _, value in points)
    state, reason = str(status.state), status.reason
    if code is not None and code != ExitCode.OK:
        state = "stopped" if code == ExitCode.STOPPED else "failed"
        reason = _last_words(trial.output) if status.state in ("done", "new", "running") else reason
    elif state == "new":
        state = "missing"
    if state == "done" and name not in series:
        state, reason = "failed", f"the run has no metric {name!r}"
    return Outcome(trial, state, reason, name, tuple(series.get(name, ())), seconds)


def _run(trial: Trial, stopper: Stopper) -> int:
    """Start or resume the run and wait. Its session is its own, so that Ctrl-C reaches it once, from here."""
    trial.output.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")}
    with trial.output.open("ab") as output:
        process = subprocess.Popen(
            command_of(trial), stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
            start_new_session=True,
        )  # fmt: skip
        is_told = False
        while True:
            if stopper.requested and not is_told:
                process.terminate()
                is_told = True
            try:
                return process.wait(timeout=_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue


def command_of(trial: Trial) -> list[str]:
    """The command line that makes the run, or goes on with it."""
    command = [sys.executable, "-m", "lightrft_core.cli.main", "train"]
    if trial.run_dir.run_yaml.is_file():
        return [*command, "--resume", str(trial.run_dir.path)]
    return [*command, str(trial.source), *(word for text in trial.sets for word in ("--set", text))]


def _last_words(output: Path) -> str:
    """The last line that says something; an error's first line where the output holds one."""
    try:
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    return (errors or said or [""])[-1]
