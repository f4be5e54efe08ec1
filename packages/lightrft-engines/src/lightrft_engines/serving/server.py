"""An engine as a server: started by rank 0 on the loopback address, or found at `engine.url`; every rank is its client.

What each server wants to be told, and how, is its `Dialect`. Routes that take weights ask for no key, so a server that
is started here listens on this machine only.
"""

import logging
import secrets
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from lightrft_core.errors import LightRFTError, RunFailed
from lightrft_core.protocols import Setup, Weights

from lightrft_engines.serving.buckets import SHARED
from lightrft_engines.serving.engine import Facts, Samples
from lightrft_engines.serving.http import Client, Refused, Unreachable
from lightrft_engines.serving.options import ServedConfig
from lightrft_engines.serving.process import ServerProcess, free_port, require_free
from lightrft_engines.serving.siblings import Sibling

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
CONTROL_LIMIT = 600.0  # seconds that a call other than generating may take
ABORT_LIMIT = 60.0  # seconds in which an aborted request must come back


class Transfer(Protocol):
    """A way for weights to a server. All ranks call together."""

    def send(self, weights: Weights) -> Sequence[str]:
        """Serve these weights; returns served parameters that were left out, where the way can tell."""

    def close(self) -> None:
        """Let go of what it holds."""


class Dialect(Protocol):
    """What one kind of server is told. `RunFailed` of the client goes through."""

    label: str
    """What messages call it."""

    def command(self, host: str, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
        """What starts it, and what is added to its environment."""

    def facts(self, client: Client) -> Facts:
        """What it says of itself; `UserError` for one that was started otherwise than we need it."""

    def write(self, client: Client, sibling: Sibling, name: str, timeout: float | None) -> None:
        """One completion: token ids there and back, never text."""

    def abort(self, client: Client, names: Sequence[str]) -> None:
        """Make these come back as they are."""

    def samples(self, client: Client, names: Sequence[str]) -> Sequence[Samples]:
        """What each worker serves of the parameters' samples."""

    def reset_cache(self, client: Client) -> bool:
        """Forget prefixes, images and what encoders made of them; False where it kept them."""

    def sleep(self, client: Client, level: int) -> None:
        """Give memory back."""

    def wake(self, client: Client, tag: str) -> None:
        """Take the memory of `weights` or `kv_cache` again."""

    def transfer(self, client: Client, folder: Path) -> Transfer:
        """The way that weights take; `folder` is in memory where the machine has such a one."""

    def explained(self, text: str, doing: str) -> LightRFTError:
        """The error for what it said while it was `doing` something."""


class Server:
    """`engine.Backend` over HTTP."""

    def __init__(self, config: ServedConfig, setup: Setup, dialect: Dialect) -> None:
        self._config, self._setup, self._world, self._dialect = config, setup, setup.world, dialect
        self.label = dialect.label
        self._process: ServerProcess | None = None
        self._client: Client | None = None
        self._transfer: Transfer | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="lightrft-", dir=SHARED if SHARED.is_dir() else None)
        self._restarts = 0
        self._token, self._num_calls = secrets.token_hex(4), 0  # other runs may use the same server

    def start(self) -> Facts:
        """Start or find the server; what fails on rank 0 fails on all."""
        self._open()
        return self._dialect.facts(self._require())

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
            self._transfer = self._dialect.transfer(self._require(), Path(self._folder.name))
        try:
            missing = self._transfer.send(weights)
        except Unreachable as error:
            if not self._config.restart or self._world.size > 1:
                raise self._as_failure(error) from error
            self._revive(error, reload=False)
            missing = self._require_transfer().send(weights)
        self._restarts = 0
        return missing

    def samples(self, names: Sequence[str]) -> Sequence[Samples]:
        """Asked by rank 0, told to all."""
        asked = self._dialect.samples(self._require(), names) if self._world.rank == 0 else None
        return cast(Sequence[Samples], self._world.gather(asked)[0])

    def reset_cache(self) -> None:
        """Asked by rank 0; the others wait."""
        if self._world.rank == 0 and not self._dialect.reset_cache(self._require()):
            raise RunFailed(f"{self.label} kept its prefix cache, which is of weights that are gone", where="engine")
        self._world.barrier()

    def sleep(self, level: int) -> None:
        """Asked by rank 0; the others wait."""
        if self._world.rank == 0:
            self._dialect.sleep(self._require(), level)
        self._world.barrier()

    def wake(self, tag: str) -> None:
        """Asked by rank 0; the others wait."""
        if self._world.rank == 0:
            self._dialect.wake(self._require(), tag)
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
            log.warning("whoever reaches %s can change its weights: the routes for that ask for no key", told["url"])

    def _launch(self) -> str:
        port = self._config.port
        if port is None:
            port = free_port(HOST)
        else:
            require_free(HOST, port)
        command, environment = self._dialect.command(HOST, port)
        self._process = ServerProcess(command, environment, self._log_path)
        client = Client(f"{HOST}:{port}", 5.0, 1)
        try:
            self._process.wait_until(lambda: _answers(client), self._config.start_timeout, "engine")
        except RunFailed as error:
            self._process.stop()
            failure = self._dialect.explained(self._process.log_text(), "start")
            raise failure if failure.where != "engine" else error from None
        finally:
            client.close()
        return f"http://{HOST}:{port}"

    @property
    def _log_path(self) -> Path:
        folder = self._setup.run_dir
        return (folder if folder.is_dir() else Path(self._folder.name)) / f"{self.label.lower()}.log"

    def _attempt(self, siblings: Sequence[Sibling]) -> BaseException | None:
        client, expired, limit = self._require(), threading.Event(), self._config.time_limit
        begun: dict[str, Sibling] = {}
        self._num_calls += 1
        call = f"{self._token}-{self._num_calls}"  # what comes too late to end a request ends none of the next call

        def write(sibling: Sibling) -> None:
            if not expired.is_set():
                timeout = None if limit is None else limit + ABORT_LIMIT
                name = f"{call}-{sibling.name}."  # SGLang ends all whose names begin so
                begun[name] = sibling
                self._dialect.write(client, sibling, name, timeout)

        def abort() -> None:
            expired.set()
            self._dialect.abort(client, [name for name, one in list(begun.items()) if one.finish_reason is None])

        return client.each(write, siblings, limit, abort)

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
        self._transfer = self._dialect.transfer(self._require(), Path(self._folder.name))
        if reload:
            self._transfer.send(self._setup.require_strategy().weights)
            self.reset_cache()

    def _as_failure(self, error: BaseException) -> BaseException:
        if isinstance(error, Refused):
            return self._dialect.explained(f"{error.what}", "generate")
        if not isinstance(error, Unreachable):
            return error
        died = self._process is not None and not self._process.is_running
        what = "the engine server died" if died else "the engine server does not answer"
        hint = f"Its log is {self._log_path.name} in the run's folder. `engine.restart: true` starts it anew, once in "
        return RunFailed(f"{what} ({error.what})", where="engine", hint=f"{hint}a step.")

    def _require(self) -> Client:
        if self._client is None:
            raise RuntimeError("the engine is not started")
        return self._client

    def _require_transfer(self) -> Transfer:
        if self._transfer is None:
            raise RuntimeError("no weights were sent yet")
        return self._transfer


def _answers(client: Client) -> bool:
    try:
        client.get("/health")
    except (Unreachable, Refused):
        return False
    return True
