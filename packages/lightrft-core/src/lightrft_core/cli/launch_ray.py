"""A run as a Ray Train job: Ray starts the workers and their process group, each of which runs the same loop.

Everything of Ray is imported here, and only when it is called.
"""

import logging
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from lightrft_core import launch
from lightrft_core.errors import EnvironmentUnfit, ExitCode, StoppedEarly
from lightrft_core.failures import KILLED_HINT, Failure, first, paragraph
from lightrft_core.rank_output import own_output, rank_log
from lightrft_core.rundir import RunDir

_OURS: Final = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` each worker would build an environment of its own
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a plugin's relative paths mean what they mean without Ray
    "RAY_DEDUP_LOGS": "0",  # only rank 0 prints, and lines of steps look alike
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # or each of them comes twice
    "RAY_USAGE_STATS_ENABLED": "0",
}
_RAY: Final = "ray"  # its folder in ours: all that it does there is to see that the workers share it
_STORE_BYTES: Final = 100 * 2**20  # we send nothing through Ray's object store, whose default is a third of the memory


@dataclass(frozen=True, slots=True)
class Cluster:
    """What to run on; `address` as in `lightrft launch ray --help`."""

    workers: int
    gpus_per_worker: int
    cpus_per_worker: int
    address: str | None

    @property
    def needed(self) -> dict[str, int]:
        """Of the whole cluster."""
        gpus = {"GPU": self.workers * self.gpus_per_worker} if self.gpus_per_worker else {}
        return {"CPU": self.workers * self.cpus_per_worker, **gpus}


class RankEnded(Exception):
    """A rank's failure on its way to the driver, as text: an exception of a plugin may not survive pickling."""


def check_ray() -> None:
    """Raise `EnvironmentUnfit` where Ray Train is not installed."""
    os.environ.update({name: value for name, value in _OURS.items() if name not in os.environ})
    try:
        import ray.train.torch
    except ImportError as error:
        raise EnvironmentUnfit(
            f"Ray Train is not here: {error}.", hint="Install it: pip install 'lightrft-core[ray]'"
        ) from error
    assert ray.train.torch


def run_on_ray(run_dir: RunDir, cluster: Cluster) -> int:
    """Run to the end; returns the exit code. The first error of the rank that failed is on stderr by then."""
    import ray

    is_ours = _connect(cluster)
    try:
        _check_resources(cluster, ray.cluster_resources(), can_grow=not is_ours)
        with _stopping(run_dir), _shown(rank_log(run_dir.logs, 0)):
            error = _fit(run_dir, cluster)
    finally:
        ray.shutdown()
        shutil.rmtree(run_dir.logs / _RAY, ignore_errors=True)
    if error is not None:
        return _tell(run_dir, error)
    status = run_dir.read_status()
    if status.exit_code == ExitCode.STOPPED:
        raise StoppedEarly(status.reason, hint=f"Go on with: lightrft launch ray --resume {run_dir.path}")
    return int(ExitCode.OK)


def _connect(cluster: Cluster) -> bool:
    """Join a cluster, or start one; returns whether it was started here."""
    import ray

    if cluster.address != "local":
        try:
            ray.init(address=cluster.address or "auto", logging_level="ERROR", log_to_driver=False)
        except ConnectionError as error:
            if cluster.address is not None:
                raise EnvironmentUnfit(
                    f"there is no Ray cluster at {cluster.address}: {' '.join(str(error).split())}",
                    where="--address",
                    hint="Start one with `ray start --head`, or leave --address out to start one here for this run.",
                ) from error
        else:
            return False
    ray.init(
        address="local",
        num_cpus=cluster.needed["CPU"],
        object_store_memory=_STORE_BYTES,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    return True


def _check_resources(cluster: Cluster, there: Mapping[str, float], *, can_grow: bool) -> None:
    """Say what is missing: Ray would wait for it without a word, and for ever where the cluster cannot grow."""
    missing = [
        f"{needed} {name}s where there are {there.get(name, 0):.0f}"
        for name, needed in cluster.needed.items()
        if there.get(name, 0) < needed
    ]
    if not missing:
        return
    what = f"{cluster.workers} workers need more than this Ray cluster has: {', '.join(missing)}."
    if not can_grow:
        raise EnvironmentUnfit(what, hint="Lower --workers, or train on CPUs with --gpus-per-worker 0.")
    print(f"{what} Waiting until it has grown; Ctrl-C twice gives up.", file=sys.stderr)


def _fit(run_dir: RunDir, cluster: Cluster) -> Exception | None:
    """Train in a thread, for Ray would replace the handler of Ctrl-C in the main one; returns what ended it early."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    trainer = TorchTrainer(
        train_rank,
        train_loop_config={"run": str(run_dir.path)},
        torch_config=TorchConfig(timeout_s=1800),
        scaling_config=ray.train.ScalingConfig(
            num_workers=cluster.workers, use_gpu=cluster.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=_RAY,
            storage_path=str(run_dir.logs),
            logging_config=ray.train.LoggingConfig(log_level="CRITICAL"),  # what it says of a failure, `_tell` says
        ),
    )
    ended: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # Ray's own classes; read by `_tell`
            ended.append(error)

    thread = threading.Thread(target=fit, name="lightrft-ray", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=1)  # so that signals are seen
    return ended[0] if ended else None


def train_rank(config: Mapping[str, str]) -> None:
    """One rank, in a worker whose process group and environment Ray Train has set up."""
    from lightrft_core.cli.main import set_up_output
    from lightrft_core.cli.train import train_here
    from lightrft_core.command_line import resolve_command_line

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger().handlers.clear()  # Ray's, which prints every record
    set_up_output()
    try:
        run_dir = RunDir.open(Path(config["run"]))
        with own_output(run_dir.logs, launch.rank(), terminal=rank_log(run_dir.logs, 0)) as tell:
            run_file, plugins = resolve_command_line(str(run_dir.run_yaml), [], [])
            train_here(run_file, plugins, run_dir, is_resumed=True, tell=tell)
    except StoppedEarly:
        return  # all ranks do so together, and STATUS tells
    except Exception as error:
        raise RankEnded(Failure.of(error).to_json()) from None


@contextmanager
def _shown(log: Path) -> Iterator[None]:
    """Print what is added to a file while the block runs."""
    seen = log.stat().st_size if log.exists() else 0
    done = threading.Event()

    def follow() -> None:
        position, is_last = seen, False
        while not is_last:
            is_last = done.wait(0.5)
            if log.exists():
                with log.open("rb") as file:
                    file.seek(position)
                    added = file.read()
                position += len(added)
                sys.stdout.buffer.write(added)
                sys.stdout.buffer.flush()

    thread = threading.Thread(target=follow, name="lightrft-shown", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def _stopping(run_dir: RunDir) -> Iterator[None]:
    """A first signal asks the ranks to save and stop, by a file in the run's folder; a second one ends all at once."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        name = signal.Signals(number).name
        if len(received) > 1:
            os.write(2, f"\n{name}: ending at once; nothing more is saved\n".encode())
            os._exit(128 + number)  # the cluster ends the workers of a driver that is gone
        run_dir.stop_file.write_text(name, encoding="utf-8")
        os.write(2, f"\n{name}: the ranks finish their phase, then save; a second signal ends at once\n".encode())

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    former = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _tell(run_dir: RunDir, error: Exception) -> int:
    """Print the first error of the rank that failed, and leave it in STATUS; returns its exit code."""
    failures = [_failure(rank, failed) for rank, failed in getattr(error, "worker_failures", {}).items()]
    cause = first(failures) if failures else Failure.of(error)
    text = paragraph(cause, run_dir) if failures else f"Ray Train failed with {cause.text}"
    status = run_dir.read_status()
    if status.reason.startswith("run.watchdog"):
        text = status.reason  # the worker died because the watchdog ended it
    elif not cause.is_consequence and (cause.rank != 0 or status.state == "killed"):
        run_dir.write_status("failed", text, cause.exit_code)
    print(f"error: {text}", file=sys.stderr, flush=True)
    return cause.exit_code


def _failure(rank: int, failed: Any) -> Failure:  # Any: an exception of Ray's that wraps ours, or tells of a death
    inner = getattr(failed, "_base_exc", failed)
    noted = Failure.from_json(str(inner)) if isinstance(inner, RankEnded) else None
    if noted is not None:
        return noted
    text = " ".join(str(inner).split())
    host, detail = re.search(r"hostname='([^']+)'", text), re.search(r"Worker exit detail: (.*?\.) Some common", text)
    what = f"its worker died. {KILLED_HINT} Ray says: {detail[1]}" if detail else f"its worker ended: {text}"
    return Failure(rank, host[1] if host else "its machine", int(ExitCode.FAILED), what, 0.0)
