"""Runs of one run file in forked children that are killed at random moments and resumed, and one left undisturbed.

Everything heavy is imported once and each attempt is a fork, so twenty kills cost seconds. A killed run is resumed
until it is done; then the next is begun, until there were enough kills. Prints what each kill hit, as JSON.

    python forked_runs.py RUN.yaml FOLDER NUM_KILLS SEED
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers.models.qwen2.modeling_qwen2  # noqa: F401
from lightrft_core.command_line import resolve_command_line
from lightrft_core.rundir import RunDir
from lightrft_core.session import Session
from lightrft_engines import embedded, text  # noqa: F401
from lightrft_engines.training import single  # noqa: F401

LONGEST_SAVE = 0.015


@dataclass(frozen=True)
class Moment:
    """When to kill: so long after the start, or so long after a checkpoint is seen being written."""

    is_in_save: bool
    delay: float


def start(source: str, run_dir: Path) -> int:
    """Fork a child that trains, or resumes what is there; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        run_file, plugins = resolve_command_line(source, [f"run.dir={run_dir.parent}", f"run.name={run_dir.name}"], [])
        folder = RunDir(run_dir)
        is_resumed = folder.run_yaml.exists()
        if not is_resumed:
            shutil.rmtree(run_dir, ignore_errors=True)  # killed before there was anything to resume
            folder = RunDir.create(run_dir.parent, run_dir.name)
            folder.write_run_file(run_file.to_yaml())
        Session(run_file, plugins, folder, lambda line: None).train(resume=is_resumed)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def finish(pid: int) -> None:
    """Wait until the child is done by itself."""
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"a run ended with status {os.waitstatus_to_exitcode(status)}")


def kill(pid: int, moment: Moment, checkpoints: Path) -> str | None:
    """Kill -9 at the moment; returns what it hit, or None where the child was done before."""
    due = None if moment.is_in_save else time.monotonic() + moment.delay
    left_over = unfinished(checkpoints)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done and status:
            raise SystemExit(f"a run ended with status {os.waitstatus_to_exitcode(status)}")
        if done:
            return None
        if due is None and unfinished(checkpoints) - left_over:
            due = time.monotonic() + moment.delay
        if due is not None and time.monotonic() >= due:
            break
        time.sleep(0.0002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "a save" if unfinished(checkpoints) - left_over else "a step"


def unfinished(checkpoints: Path) -> set[tuple[str, int]]:
    """Checkpoints being written, or left so by an earlier kill, with the time of their last change."""
    found = set()
    for path in checkpoints.glob("tmp_*"):
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def moments(draw: random.Random, whole: float) -> Iterator[Moment]:
    """Now somewhere in the run, now within the writing of a checkpoint."""
    while True:
        yield Moment(False, draw.uniform(0.1, whole))
        yield Moment(True, draw.uniform(0.0, LONGEST_SAVE))


def main() -> None:
    """Run the undisturbed run, then the others."""
    source, out, num_kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    sys.modules["matplotlib"] = None  # a plot at the end of each would take most of the time
    begin = time.monotonic()
    finish(start(source, out / "undisturbed"))
    plan = moments(random.Random(seed), time.monotonic() - begin)
    kills: list[str] = []
    number = 0
    while len(kills) < num_kills:
        run = out / f"disturbed{number}"
        hit = kill(start(source, run), next(plan), run / "checkpoints")
        if hit is None:
            number += 1
        else:
            kills.append(hit)
    finish(start(source, out / f"disturbed{number}"))
    print(json.dumps(kills))


if __name__ == "__main__":
    main()
