"""As `forked_runs.py`, of runs by several ranks: at each kill ONE rank dies, and the others must end by themselves.

Of each variant, which adds settings to the run file, there is a folder; what was hit is printed as JSON by variant.

    python forked_ranks.py RUN.yaml FOLDER NUM_RANKS NUM_KILLS VARIANTS

VARIANTS is JSON: a list of `[name, seed, [setting, ...]]`.
"""

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
import transformers.models.qwen2.modeling_qwen2  # noqa: F401
from forked_runs import Moment, moments, unfinished
from lightrft_core.command_line import resolve_command_line
from lightrft_core.rundir import RunDir
from lightrft_core.session import Session
from lightrft_engines import embedded, text  # noqa: F401
from lightrft_engines.training import fsdp2, single  # noqa: F401

GRACE = 30.0  # seconds in which a rank must notice that another is gone
HEAVY = {  # takes seconds to import, which the ranks of other strategies need not wait for
    "strategy.use=deepspeed": (
        "lightrft_engines.training.deepspeed",
        "deepspeed.runtime.zero.muon.muon_optimizer",  # else every rank imports it, with torch's compiler
    )
}


def start(source: str, run_dir: Path, sets: Sequence[str], num_ranks: int) -> list[int]:
    """Fork ranks that train, or resume what is there; returns their pids."""
    run_file, plugins = resolve_command_line(
        source, [f"run.dir={run_dir.parent}", f"run.name={run_dir.name}", *sets], []
    )
    if not RunDir(run_dir).run_yaml.exists():
        shutil.rmtree(run_dir, ignore_errors=True)
        RunDir.create(run_dir.parent, run_dir.name).write_run_file(run_file.to_yaml())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(num_ranks):
        pid = os.fork()
        if not pid:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1"}
            os.environ["MASTER_PORT"] = str(port)
            _train(Session(run_file, plugins, RunDir(run_dir), lambda line: None, lambda line: None))
        pids.append(pid)
    return pids


def _train(session: Session) -> None:
    code = 1
    log = os.open(session.run_dir.path / f"rank{os.environ['RANK']}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 2)
    try:
        session.train(resume=True)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def finish(pids: Sequence[int], run: Path) -> None:
    """Wait until all ranks are done by themselves."""
    for rank, pid in enumerate(pids):
        _, status = os.waitpid(pid, 0)
        if status:
            raise SystemExit(f"rank {rank} ended with status {status}: {(run / f'rank{rank}.out').read_text()}")


def kill_one(pids: Sequence[int], victim: int, moment: Moment, run: Path) -> str | None:
    """Kill -9 one rank at the moment; returns what it hit, or None where the run was done before.

    Not before the ranks have met: until then only a launcher knows that one of them is gone.
    """
    checkpoints = run / "checkpoints"
    due = None if moment.is_in_save else time.monotonic() + moment.delay
    left_over, earlier = unfinished(checkpoints), written_at(run / "manifest.json")
    while due is None or time.monotonic() < due or written_at(run / "manifest.json") == earlier:
        if os.waitid(os.P_PID, pids[victim], os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            finish(pids, run)
            return None
        if due is None and unfinished(checkpoints) - left_over:
            due = time.monotonic() + moment.delay
        time.sleep(0.0002)
    hit = "a save" if unfinished(checkpoints) - left_over else "a step"
    os.kill(pids[victim], signal.SIGKILL)
    deadline = time.monotonic() + GRACE
    for rank, pid in enumerate(pids):
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                raise SystemExit(f"rank {rank} goes on although rank {victim} is gone")
            time.sleep(0.001)
    return hit


def written_at(path: Path) -> int:
    """When; 0 where it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


def main() -> None:
    """Every variant in turn."""
    source, out, num_ranks, num_kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    sys.modules["matplotlib"] = None  # a plot at the end of each would take most of the time
    hits = {
        name: disturb(source, out / name, num_ranks, num_kills, random.Random(seed), sets)
        for name, seed, sets in json.loads(sys.argv[5])
    }
    print(json.dumps(hits))


def disturb(
    source: str, out: Path, num_ranks: int, num_kills: int, draw: random.Random, sets: Sequence[str]
) -> list[str]:
    """Run the undisturbed run, then the others; what each kill hit."""
    for module in (name for setting in sets for name in HEAVY.get(setting, ())):
        import_module(module)
    begin = time.monotonic()
    finish(start(source, out / "undisturbed", sets, num_ranks), out / "undisturbed")
    plan = moments(draw, time.monotonic() - begin)
    kills: list[str] = []
    number = 0
    while len(kills) < num_kills:
        run = out / f"disturbed{number}"
        hit = kill_one(start(source, run, sets, num_ranks), draw.randrange(num_ranks), next(plan), run)
        if hit is None:
            number += 1
        else:
            kills.append(hit)
    finish(start(source, out / f"disturbed{number}", sets, num_ranks), out / f"disturbed{number}")
    return kills


if __name__ == "__main__":
    main()
