"""A server that this run starts: it gets a free port and a log file, is watched while it loads, and ends with us."""

import ctypes
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lightrft_core.errors import RunFailed, UserError

log = logging.getLogger(__name__)
LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
PR_SET_PDEATHSIG = 1  # Linux: a signal for this process when its parent ends
GRACE = 10.0  # seconds between asking a server to end and ending it
TAIL = 4000


def free_port(host: str) -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def own_address(is_loopback: bool) -> str:
    """Where this machine's other processes, or other machines, reach it."""
    return "127.0.0.1" if is_loopback else socket.gethostbyname(socket.gethostname())


def require_free(host: str, port: int) -> None:
    """`UserError` where the port is taken: the server would fail late and say it in its log only."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"port {port} on {host} is in use.",
                where="engine.port",
                hint="Choose another, leave it out for a free one, or attach to what runs there by engine.url.",
            ) from error


class ServerProcess:
    """A started server with its children, in a process group of its own; it ends when this process does, however."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log_path: Path) -> None:
        self._log_path = log_path
        self._start = log_path.stat().st_size if log_path.exists() else 0
        with log_path.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**plain_environment(), **environment},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        log.info("started an engine server: process %d, log %s", self._process.pid, log_path)

    @property
    def pid(self) -> int:
        """Number of the process, which is also that of its group."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait_until(self, is_ready: Callable[[], bool], limit: float, where: str) -> None:
        """Until it is ready; `RunFailed` with the end of its log where it ends before, or takes too long."""
        deadline = time.monotonic() + limit
        while not is_ready():
            if not self.is_running:
                raise RunFailed(f"the engine server ended with status {self._process.returncode}{self.tail()}",
                                where=where, hint=f"Its log is {self._log_path}.")  # fmt: skip
            if time.monotonic() > deadline:
                self.stop()
                raise RunFailed(
                    f"the engine server was not ready after {limit:.0f} seconds{self.tail()}",
                    where=where,
                    hint=f"Raise engine.start_timeout, or read its log {self._log_path}.",
                )
            time.sleep(0.2)

    def tail(self) -> str:
        """What its log ends with, for a message: the last error where one is named."""
        text = self._log_path.read_bytes()[self._start :].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line and "Traceback" not in line]
        return f": {(errors or lines)[-1][-400:]}" if lines else ""

    def log_text(self) -> str:
        """The last part of its log."""
        return self._log_path.read_bytes()[self._start :][-TAIL:].decode(errors="replace")

    def stop(self) -> None:
        """End it and its children; asking first."""
        for number, limit in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(limit)
            except subprocess.TimeoutExpired:
                continue
        self._process.poll()


def plain_environment() -> dict[str, str]:
    """Ours without what a launcher says about this process: the server is no rank of the run."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in LAUNCHERS and not name.startswith(("TORCHELASTIC_", "ROLE_"))
    }


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
