"""vLLM as a server: started by rank 0 on the loopback address, or found at `engine.url`; every rank is its client.

The routes that take weights belong to vLLM's development mode and ask for no key. So a server that is started here
listens on this machine only.
"""

import json
import logging
import secrets
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lightrft_core.errors import LightRFTError, RunFailed, UserError
from lightrft_core.protocols import Setup, Weights

from lightrft_engines.serving.buckets import SHARED
from lightrft_engines.serving.http import FOREVER, Client, Refused, Unreachable
from lightrft_engines.serving.process import ServerProcess, free_port, require_free
from lightrft_engines.serving.siblings import Sibling
from lightrft_engines.vllm_engine.arguments import EXTENSION, LOGPROBS, arguments, command_line
from lightrft_engines.vllm_engine.config import VllmConfig
from lightrft_engines.vllm_engine.engine import Facts, Samples
from lightrft_engines.vllm_engine.faults import explained
from lightrft_engines.vllm_engine.sampling import settings
from lightrft_engines.vllm_engine.transfer import Transfer, choose_transfer

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
CONTROL_LIMIT = 600.0  # seconds that a call other than generating may take
ABORT_LIMIT = 60.0  # seconds in which an aborted request must come back


class Server:
    """`engine.Backend` over HTTP."""

    def __init__(self, config: VllmConfig, setup: Setup) -> None:
        self._config, self._setup, self._world = config, setup, setup.world
        self._process: ServerProcess | None = None
        self._client: Client | None = None
        self._transfer: Transfer | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="lightrft-", dir=SHARED if SHARED.is_dir() else None)
        self._restarts = 0
        self._token = secrets.token_hex(4)  # other runs may use the same server

    def start(self) -> Facts:
        """Start or find the server; what fails on rank 0 fails on all."""
        self._open()
        facts = _facts(self._require())
        return Facts(facts["max_model_len"], facts["is_multimodal"])

    def write(self, siblings: Sequence[Sibling]) -> None:
        """A request a sibling, all at once; where the server died and may be restarted, everything once more."""
        error = self._attempt(siblings)
        if self._config.restart and any(self._world.gather(error is not None)):
            self._revive(error)
            for sibling in siblings:
                sibling.token_ids, sibling.logprobs, sibling.finish_reason = [], [], None
            error = self._attempt(siblings)
        if error is not None:
            raise self._as_failure(error)

    def load(self, weights: Weights) -> Sequence[str]:
        """By the way that was chosen; all ranks iterate, rank 0 sends."""
        if self._transfer is None:
            self._transfer = choose_transfer(self._config, self._require(), self._world, Path(self._folder.name))
        try:
            missing = self._transfer.send(weights)
        except Unreachable as error:
            if not self._config.restart or self._world.size > 1:
                raise self._as_failure(error) from error
            self._revive(error, reload=False)
            missing = self._transfer.send(weights)
        self._restarts = 0
        return missing

    def samples(self, names: Sequence[str]) -> Sequence[Samples]:
        """Asked by rank 0, told to all."""
        asked = self._rpc("lightrft_sample", json.dumps(list(names))) if self._world.rank == 0 else None
        return cast(Sequence[Samples], self._world.gather(asked)[0])

    def reset_cache(self) -> None:
        """Asked by rank 0; the others wait."""
        if self._world.rank == 0:
            client = self._require()
            client.post("/reset_mm_cache")
            client.post("/reset_encoder_cache")
            if not client.post("/reset_prefix_cache")["success"]:
                raise RunFailed("vLLM kept its prefix cache, which is of weights that are gone", where="engine")
        self._world.barrier()

    def sleep(self, level: int) -> None:
        """Asked by rank 0; the others wait."""
        if self._world.rank == 0:
            self._require().post("/sleep", query={"level": level, "mode": "wait"})
        self._world.barrier()

    def wake(self, tag: str) -> None:
        """Asked by rank 0; the others wait."""
        if self._world.rank == 0:
            self._require().post("/wake_up", query={"tags": tag})
        self._world.barrier()

    def close(self) -> None:
        """End the server, if it is ours."""
        if self._transfer is not None:
            self._transfer.close()
        if self._client is not None:
            self._client.close()
        if self._process is not None:
            self._process.stop()
            self._process = None
        self._folder.cleanup()

    @property
    def process(self) -> ServerProcess | None:
        """The server, where this rank started it."""
        return self._process

    def _open(self) -> None:
        told: dict[str, Any] = {}  # Any: JSON
        failure: LightRFTError | None = None
        if self._world.rank == 0:
            try:
                told["url"] = self._config.url or self._launch()
            except LightRFTError as error:
                failure, told = error, {"error": str(error)}
        told = self._world.gather(told)[0]
        if "error" in told:
            raise failure or RunFailed(told["error"])
        self._client = Client(told["url"], CONTROL_LIMIT, self._config.max_sequences)
        if self._config.url is not None and not self._client.is_loopback:
            log.warning("whoever reaches %s can change its weights: vLLM's routes for that ask for no key", told["url"])

    def _launch(self) -> str:
        port = self._config.port
        if port is None:
            port = free_port(HOST)
        else:
            require_free(HOST, port)
        found = arguments(self._config, self._setup)
        if backend := self._backend_of_transfer():
            found["weight_transfer_config"] = json.dumps({"backend": backend})
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", HOST, "--port", str(port)]
        command += [*command_line(found), "--disable-uvicorn-access-log", "--disable-log-stats"]
        environment = dict(ENVIRONMENT)
        if backend == "ipc":  # handles of CUDA memory travel pickled, from this process to its own server
            environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        self._process = ServerProcess(command, environment, self._log_path)
        client = Client(f"{HOST}:{port}", 5.0, 1)
        try:
            self._process.wait_until(lambda: _answers(client), self._config.start_timeout, "engine")
        except RunFailed as error:
            self._process.stop()
            failure = explained(self._process.log_text(), "start")
            raise failure if failure.where != "engine" else error from None
        finally:
            client.close()
        return f"http://{HOST}:{port}"

    @property
    def _log_path(self) -> Path:
        folder = self._setup.run_dir
        return (folder if folder.is_dir() else Path(self._folder.name)) / "vllm.log"

    def _backend_of_transfer(self) -> str | None:
        from lightrft_engines.vllm_engine.transfer import way

        chosen = way(self._config)
        return None if chosen == "shared_memory" else chosen

    def _attempt(self, siblings: Sequence[Sibling]) -> BaseException | None:
        client, expired = self._require(), threading.Event()
        names = {id(sibling): f"{self._token}-{sibling.name}" for sibling in siblings}

        def write(sibling: Sibling) -> None:
            if not expired.is_set():
                _write(client, sibling, names[id(sibling)], self._config.time_limit)

        def abort() -> None:
            expired.set()
            running = [names[id(one)] for one in siblings if one.finish_reason is None]
            client.post("/abort_requests", {"request_ids": [f"cmpl-{name}-0" for name in running]})

        return client.each(write, siblings, self._config.time_limit, abort)

    def _revive(self, error: BaseException | None, *, reload: bool = True) -> None:
        """A new server with the trained weights; all ranks together."""
        if self._config.url is not None or self._restarts:
            raise self._as_failure(error) if error else RunFailed("another rank lost the engine server twice in a step")
        self._restarts += 1
        log.warning("the engine server is lost (%s): starting it anew", error)
        if self._process is not None:
            self._process.stop()
        if self._transfer is not None:
            self._transfer.close()
        self._open()
        self._transfer = choose_transfer(self._config, self._require(), self._world, Path(self._folder.name))
        if reload:
            self._transfer.send(self._setup.require_strategy().weights)
            self.reset_cache()

    def _as_failure(self, error: BaseException) -> BaseException:
        if isinstance(error, Refused):
            return explained(f"{error.what}", "generate")
        if not isinstance(error, Unreachable):
            return error
        died = self._process is not None and not self._process.is_running
        what = "the engine server died" if died else "the engine server does not answer"
        hint = "Its log is vllm.log in the run's folder. `engine.restart: true` starts it anew, once in a step."
        return RunFailed(f"{what} ({error.what})", where="engine", hint=hint)

    def _rpc(self, method: str, *args: str) -> Sequence[Any]:  # Any: what the workers' method returns
        return rpc(self._require(), method, *args)

    def _require(self) -> Client:
        if self._client is None:
            raise RuntimeError("the engine is not started")
        return self._client


def rpc(client: Client, method: str, *args: str) -> Sequence[Any]:  # Any: what the workers' method returns
    """Call a method of all workers; one result for each."""
    answer = client.post("/collective_rpc", {"method": method, "args": list(args)})
    return cast(Sequence[Any], answer["results"])


def _write(client: Client, sibling: Sibling, name: str, limit: float | None) -> None:
    """One completion: token ids there and back, never text."""
    body = {
        **settings(sibling),
        "prompt": list(sibling.prompt_token_ids),
        "return_token_ids": True,
        "request_id": name,
    }
    answer = client.post("/v1/completions", body, timeout=FOREVER if limit is None else limit + ABORT_LIMIT)
    choice = answer["choices"][0]
    sibling.add(choice["token_ids"], (choice["logprobs"] or {"token_logprobs": []})["token_logprobs"])
    sibling.finish(choice["finish_reason"])


def _answers(client: Client) -> bool:
    try:
        client.get("/health")
    except (Unreachable, Refused):
        return False
    return True


def _facts(client: Client) -> dict[str, Any]:  # Any: JSON
    """What the server's workers say of themselves; `UserError` for one that was started otherwise than we need it."""
    what = ""
    try:
        facts: dict[str, Any] = rpc(client, "lightrft_facts")[0]
        if facts["logprobs_mode"] == LOGPROBS:
            return facts
        what = f"gives {facts['logprobs_mode']}, which are not of the distribution that is sampled."
    except Refused as error:
        what = f"does not take weights: {error.what}."
    raise UserError(
        f"the server at {client.url} {what}",
        where="engine.url",
        hint="Start it with VLLM_SERVER_DEV_MODE=1 and "
        f"`--logprobs-mode {LOGPROBS} --worker-extension-cls {EXTENSION}`.",
    )
