"""manifest.json of a run: what it ran with, so that its numbers can be explained and repeated later."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

from lightrft_core.descriptors import Algorithm
from lightrft_core.flat_keys import flatten
from lightrft_core.layers import expand_shorthand
from lightrft_core.nodes import Origin, from_plain
from lightrft_core.plugins import PluginRow
from lightrft_core.protocols import Json
from lightrft_core.recipe_files import shown
from lightrft_core.rundir import RunDir
from lightrft_core.runfile import Chosen, RunFile

_DISTRIBUTIONS: Final = (
    *("lightrft-core", "lightrft-algos", "lightrft-engines", "lightrft-vlm", "lightrft-rewards"),
    *("torch", "transformers", "safetensors", "tokenizers", "numpy", "pydantic", "pluggy", "math-verify"),
    *("vllm", "sglang", "deepspeed", "flash-attn"),
)
_GIT_SECONDS: Final = 5
ABSENT: Final = "not set"


def describe(
    run_file: RunFile,
    plugins: Sequence[PluginRow],
    *,
    data: Mapping[str, str],
    world_size: int,
    folder: Path,
    algorithm: Algorithm | None = None,
) -> dict[str, Json]:
    """The manifest as JSON.

    `data` holds the tasks' fingerprints by role; `folder` is where the run was started, whose git commit is recorded;
    `algorithm` is the bundle that the run names. Versions come from package metadata: nothing is imported.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "seed": run_file.run.seed,
        "world_size": world_size,
        "cpus": os.cpu_count(),
        "data": dict(data),
        "algorithm": bundle(algorithm, run_file) if algorithm is not None else None,
        "formula": formula(run_file),
        "versions": versions(),
        "plugins": [
            {
                "name": row.name,
                "distribution": row.distribution,
                "version": row.version,
                "state": str(row.state),
                "problem": row.problem,
            }
            for row in plugins
        ],
        "git": commit(folder),
    }


def formula(run_file: RunFile) -> dict[str, Json]:
    """Every choice that changes the maths, with the component's own formula and paper; one place normalises."""
    one = (run_file.sampler, run_file.advantage, run_file.loss, run_file.kl, run_file.correction)
    many = (*run_file.filters, *run_file.shapers, *run_file.selectors, *run_file.rewards)
    choices: dict[str, Json] = {"algorithm": run_file.algorithm}
    choices |= {chosen.kind: _choice(chosen) for chosen in one if chosen is not None}
    for chosen in many:
        choices.setdefault(f"{chosen.kind}s", []).append(_choice(chosen))
    if run_file.needs_values:
        choices["critic"] = {"options": run_file.critic.model_dump(mode="json")}
    return {"normalised_by": f"advantage {run_file.advantage.name}", **choices}


def bundle(algorithm: Algorithm, run_file: RunFile) -> dict[str, Json]:
    """An algorithm with every setting of its bundle as the run has it; `changed` has the bundle's own value of those
    that the user overrides."""
    used = flatten(run_file.to_plain())
    own = flatten(_spelled_out(algorithm))
    return {
        "name": algorithm.name,
        "summary": algorithm.summary,
        "formula": algorithm.formula,
        "paper": algorithm.paper,
        "settings": {key: used.get(key, ABSENT) for key in own},
        "changed": {key: value for key, value in own.items() if used.get(key, ABSENT) != value},
    }


def _spelled_out(algorithm: Algorithm) -> Json:
    """The sections of a bundle, with `loss: clip` written as `loss: {use: clip}`."""
    root = from_plain(algorithm.sections, Origin(f"algorithm {algorithm.name}", "bundle"))
    expand_shorthand(root)
    return json.loads(json.dumps(root.plain()))


def origins(run_file: RunFile, run_dir: RunDir) -> dict[str, str]:
    """Where each value was written, by dotted key; those without a place are defaults.

    What a resumed run reads from its own run.yaml keeps the place that the manifest named before.
    """
    before, own = run_dir.read_manifest().get("origins"), f"{shown(run_dir.run_yaml)}:"
    if before is None:
        return dict(run_file.origins)
    found = {key: before.get(key) if at.startswith(own) else at for key, at in run_file.origins.items()}
    return {key: at for key, at in found.items() if at is not None}


def note_origins(run_file: RunFile, run_dir: RunDir) -> None:
    """Write them into the run's manifest as soon as its run file is written: the ranks see the resolved file only."""
    run_dir.write_manifest({**run_dir.read_manifest(), "origins": origins(run_file, run_dir)})


def versions() -> dict[str, str]:
    """Python, the platform, and the distributions that matter and are installed."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path) -> dict[str, Json] | None:
    """The git commit of a folder and whether files differ from it; None outside a repository or without git."""
    revision = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": revision, "is_changed": None if changes is None else bool(changes)} if revision else None


def _choice(chosen: Chosen) -> dict[str, Json]:
    component = chosen.component
    facts = {"use": component.name, "name": chosen.name, "options": chosen.config.model_dump(mode="json")}
    return facts | {key: text for key, text in (("formula", component.formula), ("paper", component.paper)) if text}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
