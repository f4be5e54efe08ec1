"""Weights & Biases. A resumed run goes on in the same wandb run."""

import importlib
import netrc
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import yaml

from lightrft_core.data import StepReport
from lightrft_core.errors import EnvironmentUnfit
from lightrft_core.protocols import Json, RunStatus, Setup
from lightrft_core.redaction import redact_json
from lightrft_core.sections import Section

_EXIT_CODES: Final[Mapping[RunStatus, int]] = {"done": 0, "stopped": 75, "failed": 1}


class WandbConfig(Section):
    """Where the run appears."""

    project: str = "lightrft"
    """Project of the run."""
    entity: str | None = None
    """User or team; by default the account's own."""
    mode: Literal["online", "offline", "disabled"] = "online"
    """`offline` writes into the run's folder, to be sent later by `wandb sync`; `disabled` does nothing. Where it is
    not set, wandb's own variable WANDB_MODE decides."""
    run_name: str | None = None
    """Name of the run; by default its folder's."""
    group: str | None = None
    """Group of runs that it belongs to."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""


class WandbTracker:
    """Sends metrics by step; names are those of metrics.jsonl. The key stays in the environment or ~/.netrc."""

    def __init__(self, config: WandbConfig, setup: Setup) -> None:
        self._run: Any = None  # a wandb run; the package is optional
        mode = config.mode if "mode" in config.model_fields_set else os.environ.get("WANDB_MODE", config.mode)
        if setup.world.rank != 0 or mode == "disabled":
            return
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise EnvironmentUnfit(
                f"the tracker needs a package that cannot be imported ({error}).",
                where="trackers[wandb]",
                hint="Install it with `pip install 'lightrft-core[wandb]'`.",
            ) from None
        if mode == "online" and not _has_key():
            raise EnvironmentUnfit(
                "mode is 'online', but there is no wandb key.",
                where="trackers[wandb].mode",
                hint="Run `wandb login`, set WANDB_API_KEY, or use `--set trackers[wandb].mode=offline`.",
            )
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            mode=mode,
            tags=list(config.tags),
            group=config.group,
            name=config.run_name or setup.run_dir.name,
            id=_run_id(setup.run_dir),
            resume="allow",
            dir=str(setup.run_dir),
            config=_run_file(setup.run_dir),
            settings=wandb.Settings(silent=True),
        )

    def log(self, report: StepReport) -> None:
        """One step's numbers, and by phase its seconds and memory as `seconds/...` and `memory/..._gb`."""
        phases = report.by_phase()
        self._send(report.step, {**report.metrics, **phases})

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """One evaluation's numbers."""
        self._send(step, metrics)

    def close(self, status: RunStatus) -> None:
        """Send what is left and end the wandb run."""
        if self._run is not None:
            self._run.finish(exit_code=_EXIT_CODES[status])
            self._run = None

    def _send(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._run is not None:
            self._run.log(dict(metrics), step=step)


def _run_id(run_dir: Path) -> str:
    """The wandb run's id, kept in the folder so that a resumed run finds it."""
    path = run_dir / "wandb_id"
    if not path.exists():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _run_file(run_dir: Path) -> Json:
    path = run_dir / "run.yaml"
    return redact_json(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _has_key() -> bool:
    """Whether wandb will find a key, at the places it documents: the environment and the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return file.is_file() and netrc.netrc(file).authenticators(host) is not None
    except (netrc.NetrcParseError, OSError):
        return False
