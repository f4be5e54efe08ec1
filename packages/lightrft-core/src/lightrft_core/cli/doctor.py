"""`lightrft doctor`: what this machine and environment are, ready to paste; exit 3 where they cannot train."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import typer

from lightrft_core.errors import ExitCode

PACKAGES = ("torch", "transformers", "safetensors", "pluggy", "pydantic", "typer", "vllm", "sglang", "deepspeed")
NEEDED = frozenset({"torch", "transformers", "safetensors"})
MIN_FREE_GB = 5.0
PROBE = "import torch; print(torch.cuda.is_available(), torch.version.cuda, torch.get_num_threads())"


@dataclass(frozen=True)
class Line:
    """One finding."""

    state: Literal["ok", "note", "warn", "fail"]
    what: str
    detail: str


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor", help="Report on this machine and environment, ready to paste.")(doctor)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    runs: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where runs would be written.")] = Path("runs"),
) -> None:
    """Look, without changing anything."""
    lines = [*_python(), *_packages(), *_devices(), *_machine(runs), *_plugins()]
    if as_json:
        print(json.dumps([asdict(line) for line in lines], indent=2))
    else:
        width = max(len(line.what) for line in lines)
        for line in lines:
            print(f"{line.state:<5} {line.what:<{width}} {line.detail}")
    if any(line.state == "fail" for line in lines):
        raise typer.Exit(int(ExitCode.UNFIT))


def _python() -> Iterator[Line]:
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    yield Line("ok" if fits else "fail", "python", detail if fits else f"{detail}; LightRFT needs 3.11 to 3.13")


def _packages() -> Iterator[Line]:
    for name in ("lightrft-core", "lightrft-algos", "lightrft-engines", "lightrft-vlm", "lightrft-rewards", *PACKAGES):
        try:
            yield Line("ok", name, version(name))
        except PackageNotFoundError:
            if name in NEEDED:
                yield Line("fail", name, "not installed; pip install 'lightrft-core[all]'")
            elif name.startswith("lightrft"):
                yield Line("note", name, f"not installed; pip install {name}")


def _devices() -> Iterator[Line]:
    if shutil.which("nvidia-smi") is None:
        yield Line("note", "gpu", "none (no nvidia-smi): training runs on the CPU in fp32")
        return
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().splitlines()
    for index, line in enumerate(found):
        yield Line("ok", f"gpu {index}", line)
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False).stdout.split()
    if found and probe[:1] != ["True"]:
        yield Line("warn", "cuda", "torch cannot use the GPUs: its CUDA build and the driver do not match")


def _machine(runs: Path) -> Iterator[Line]:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    yield Line("ok", "machine", f"{os.cpu_count()} cores, {pages * size / 2**30:.0f} GB memory")
    folder = next(path for path in [runs.resolve(), *runs.resolve().parents] if path.exists())
    free = shutil.disk_usage(folder).free / 2**30
    yield Line("ok" if free > MIN_FREE_GB else "warn", "disk", f"{free:.0f} GB free for {runs}")
    if not os.access(folder, os.W_OK):
        yield Line("fail", "disk", f"{folder} is not writable; choose another with --set run.dir=...")


def _plugins() -> Iterator[Line]:
    from lightrft_core.plugins import Plugins, State

    for row in Plugins.load().rows:
        state: Literal["ok", "note", "warn"] = "ok" if row.state is State.OK else "warn"
        state = "note" if row.state is State.DISABLED else state
        detail = f"{row.distribution} {row.version}, {len(row.components)} components"
        yield Line(state, f"plugin {row.name}", detail if row.state is State.OK else f"{row.state}: {row.problem}")
