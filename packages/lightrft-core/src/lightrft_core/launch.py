"""Several processes of one run: under torchrun this process is one of them, else we may start torchrun ourselves."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence


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


def torchrun(num_processes: int, arguments: Sequence[str]) -> int:
    """Run `lightrft ARGUMENTS` on so many local processes; returns the exit code of the first that failed, or 0."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command += ["-m", "lightrft_core.cli.main", *arguments]
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_processes)), **os.environ}
    return subprocess.run(command, env=environment, check=False).returncode
