"""Runs of one run file in forked children that are killed at random moments and resumed, against an undisturbed one.

Everything heavy is imported once; each attempt is a fork, so twenty kills cost seconds. Prints one JSON object:
what was killed when, and the differences between the two runs (none, if resuming is exact).
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from lightrft_core.command_line import resolve_command_line
from lightrft_core.rundir import RunDir
from lightrft_core.session import Session

TIMES = ("seconds", "throughput/tokens_per_s", "time")


def attempt(source: str, run_dir: Path) -> int:
    """Fork a child that trains (or resumes) and exits; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        run_file, plugins = resolve_command_line(source, [f"run.dir={run_dir.parent}", f"run.name={run_dir.name}"], [])
        folder = RunDir(run_dir)
        is_resumed = folder.run_yaml.exists()
        if not is_resumed:
            folder = RunDir.create(run_dir.parent, run_dir.name)
            folder.write_run_file(run_file.to_yaml())
        Session(run_file, plugins, folder, lambda line: None).train(resume=is_resumed)
        code = 0
    finally:
        os._exit(code)


def wait(pid: int, kill_after: float | None, saving_in: Path | None) -> tuple[bool, str]:
    """Wait for the child; kill -9 after a while, or as soon as it is seen writing a checkpoint."""
    start = time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0, "finished"
        elapsed = time.monotonic() - start
        if saving_in is not None and any(saving_in.glob("tmp*")):
            return kill(pid, "while saving")
        if kill_after is not None and elapsed > kill_after:
            return kill(pid, f"after {elapsed:.2f} s")
        time.sleep(0.0005)


def kill(pid: int, when: str) -> tuple[bool, str]:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False, when


def facts(run_dir: Path) -> dict[str, object]:
    """What must be equal: every logged number but times, every checkpoint tensor, every stored rollout."""
    from lightrft_core.store import RolloutStore

    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    numbers = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    newest = max((run_dir / "checkpoints").glob("step_*"))
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(newest.rglob("*.safetensors"))}
    store = RolloutStore(run_dir / "rollouts.sqlite", readonly=True)
    rollouts = [(row.step, row.prompt_id, row.text, row.reward) for row in store.search(limit=100000)]
    store.close()
    return {"metrics": numbers, "files": files, "rollouts": sorted(rollouts)}


def main() -> None:
    source, out, num_kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    draw = random.Random(seed)
    start = time.monotonic()
    ok, _ = wait(attempt(source, out / "undisturbed"), None, None)
    if not ok:
        raise SystemExit("the undisturbed run failed")
    whole = time.monotonic() - start
    kills: list[str] = []
    disturbed = out / "disturbed"
    is_done = False
    for number in range(400):
        if is_done and len(kills) >= num_kills:
            break
        if is_done:
            disturbed = out / f"disturbed{number}"
        wants_kill = len(kills) < num_kills
        saving = disturbed / "checkpoints" if wants_kill and number % 2 else None
        delay = draw.uniform(0.05, whole * 0.6) if wants_kill else None
        is_done, when = wait(attempt(source, disturbed), delay, saving)
        if when != "finished":
            kills.append(when)
    expected = facts(out / "undisturbed")
    runs = sorted(path for path in out.glob("disturbed*"))
    differing = {run.name: [key for key, value in facts(run).items() if value != expected[key]] for run in runs}
    print(json.dumps({"kills": kills, "differing": differing, "num_steps": len(expected["metrics"])}))


if __name__ == "__main__":
    main()
