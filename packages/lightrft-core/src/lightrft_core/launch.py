"""Several processes of one run: under torchrun this process is one of them, else we may start torchrun ourselves."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType


def rank() -> int:
    """This process's rank, from the launcher's environment; 0 outside one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of ranks, from the launcher's environment; 1 outside one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_launched() -> bool:
    """Whether torchrun or another launcher started this process."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def num_gpus() -> int:
    """GPUs that this process may use, asked without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def torchrun(num_processes: int, run: Path) -> int:
    """Go on with the run in this folder on so many local processes; returns the exit code of the first that failed.

    In the main thread only: a signal to this process is passed on, so that no rank is left behind.
    """
    command = [sys.executable, "-m", "lightrft_core.torchrun", str(run), "--standalone"]
    command.append(f"--nproc-per-node={num_processes}")
    defaults = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_processes))}
    process = subprocess.Popen(command, env={**defaults, **os.environ}, start_new_session=True)
    with _passing_on(process):
        code = process.wait()
    return code if code >= 0 else 128 - code  # ended by a signal: as shells say it


@contextmanager
def _passing_on(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """A first signal goes to torchrun, which hands it to the ranks and waits for them; a second one ends all at once.

    torchrun has a session of its own, or a terminal's Ctrl-C would reach it twice.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            process.send_signal(signal.SIGTERM)
            return
        for pid in (*_children(process.pid), process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    former = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
