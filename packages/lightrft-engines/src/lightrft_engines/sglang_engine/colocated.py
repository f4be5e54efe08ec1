"""SGLang started by the trainer's process: its schedulers run on the trainer's devices, in processes of their own.

Under torchrun every rank has an SGLang of its own; with tensor parallelism, the first of consecutive ranks starts one
on all their devices and asks it for all of them.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightrft_core.errors import LightRFTError, RunFailed
from lightrft_core.protocols import Setup, Weights

from lightrft_engines.serving.buckets import SHARED
from lightrft_engines.serving.engine import Facts, Samples
from lightrft_engines.serving.server import Transfer
from lightrft_engines.serving.sharers import Sharers
from lightrft_engines.serving.siblings import Sibling
from lightrft_engines.sglang_engine.arguments import arguments, is_on_cpu
from lightrft_engines.sglang_engine.config import SglangConfig
from lightrft_engines.sglang_engine.inside import Inside
from lightrft_engines.sglang_engine.questions import Checked, ask, facts_of
from lightrft_engines.sglang_engine.sampling import request, take
from lightrft_engines.sglang_engine.transfer import choose


class Colocated:
    """`engine.Backend` by SGLang's Engine."""

    label = "SGLang"

    def __init__(self, config: SglangConfig, setup: Setup) -> None:
        self._config, self._setup, self._world = config, setup, setup.world
        self._sharers = Sharers(self._world, config.tensor_parallel)
        self._is_leader = self._sharers.is_leader
        self._folder = tempfile.TemporaryDirectory(prefix="lightrft-", dir=SHARED if SHARED.is_dir() else None)
        self._inside: Inside | None = None
        self._transfer: Transfer | None = None

    def start(self) -> Facts:
        """Start SGLang on this rank's device, and on those of the ranks that share it."""
        facts: dict[str, Any] = {}  # Any: JSON
        failure: LightRFTError | None = None
        if self._is_leader:
            try:
                facts = self._launch()
            except LightRFTError as error:
                failure, facts = error, {"error": str(error)}
        told = self._sharers.gather(facts)[0]
        if "error" in told:
            raise failure or RunFailed(told["error"])
        is_leader = self._is_leader
        transfer = choose(self._config, self._call, self._world, Path(self._folder.name), is_leader=is_leader)
        self._transfer = Checked(transfer, self._call, is_leader)
        return facts_of(told)

    def write(self, siblings: Sequence[Sibling]) -> None:
        """All at once; the leader writes for all that share its model."""
        everyone = self._sharers.siblings(siblings)
        answers = self._sharers.gather(self._written(everyone) if self._is_leader else None)[0]
        for sibling, answer in zip(siblings, answers[self._sharers.place], strict=True):
            take(sibling, answer)

    def steps(self, siblings: Sequence[Sibling]) -> Iterator[None]:
        """The same for one process; calls that are open together are written side by side."""
        flat = [request(sibling) for sibling in siblings]
        for answer in self._require().stream(flat, self._config.time_limit) if flat else ():
            take(siblings[answer["index"]], answer)
            yield

    def load(self, weights: Weights) -> Sequence[str]:
        """By the way that fits the devices."""
        if self._transfer is None:
            raise RuntimeError("the engine is not started")
        return self._transfer.send(weights)

    def samples(self, names: Sequence[str]) -> Sequence[Samples]:
        """Of the workers that share this copy of the model."""
        told = ask(self._call, "samples", names) if self._is_leader else []
        return cast(Sequence[Samples], self._sharers.gather(told)[0])

    def reset_cache(self) -> None:
        """Prefixes; SGLang keeps no other cache of what the weights made."""
        if self._is_leader and not all(ask(self._call, "reset")):
            raise RunFailed("SGLang kept its prefix cache, which is of weights that are gone", where="engine")

    def sleep(self, level: int) -> None:
        """Keys and values first: they refer to the weights."""
        for tag in ("kv_cache", "weights"):
            if self._is_leader:
                self._call("release_memory_occupation", {"tags": [tag]})
        self._world.barrier()

    def wake(self, tag: str) -> None:
        """One tag at a time, so that weights can come before there is memory for keys and values."""
        if self._is_leader:
            self._call("resume_memory_occupation", {"tags": [tag]})
        self._world.barrier()

    def close(self) -> None:
        """End SGLang's processes."""
        if self._transfer is not None:
            self._transfer.close()
        if self._inside is not None:
            self._inside.close()
            self._inside = None
        self._folder.cleanup()

    def _launch(self) -> dict[str, Any]:  # Any: JSON
        found = arguments(self._config, self._setup)
        if not is_on_cpu():
            found["base_gpu_id"] = torch.cuda.current_device()
        self._inside = Inside(found, self._log_path)
        facts: dict[str, Any] = ask(self._call, "facts")[0]
        return facts

    @property
    def _log_path(self) -> Path:
        folder = self._setup.run_dir if self._setup.run_dir.is_dir() else Path(self._folder.name)
        return folder / ("sglang.log" if self._world.rank == 0 else f"sglang-{self._world.rank}.log")

    def _written(self, everyone: Sequence[Sequence[Sibling]]) -> list[list[Any]]:  # Any: SGLang's JSON
        flat = [request(sibling) for siblings in everyone for sibling in siblings]
        answers = iter(self._require().generate(flat, self._config.time_limit) if flat else [])
        return [[next(answers) for _ in siblings] for siblings in everyone]

    def _call(self, route: str, body: Any) -> Any:  # Any: JSON
        return self._require().call(route, body)

    def _require(self) -> Inside:
        if self._inside is None:
            raise RuntimeError("the engine is closed")
        return self._inside
