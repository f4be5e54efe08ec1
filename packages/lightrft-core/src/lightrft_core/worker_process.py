"""One worker process as its parent sees it: pipes that never block, a scrubbed environment, and an end that is final.

The process leads its own session. Ending it kills its whole family: children that it started, and grandchildren that
left its process group, which the kernel hands back to it as their nearest reaper.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lightrft_core.protocols import Json
from lightrft_core.reward_wire import as_json

MAX_ANSWER_BYTES = 64 * 2**20
MAX_RELAYED_LINES = 10
_HARMLESS = frozenset(
    {"PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH"}
    | {"PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED", "PYTHONUTF8", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"}
    | {"OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "CUDA_HOME", "CUDA_VISIBLE_DEVICES"}
    | {"HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "XDG_CACHE_HOME"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"}
)


def scrubbed(environ: Mapping[str, str], allowed: Iterable[str]) -> dict[str, str]:
    """The variables that a worker needs to run Python, and those allowed by name: no tokens, no cluster addresses."""
    names = _HARMLESS | frozenset(allowed)
    kept = {name: value for name, value in environ.items() if name in names or name.startswith("LC_")}
    return {"OMP_NUM_THREADS": "1", **kept}


class WorkerProcess:
    """A running `lightrft_core.reward_worker`; answers are whole JSON lines, its stderr is kept in bounds."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        command = [sys.executable, "-P", "-m", "lightrft_core.reward_worker", str(os.getpid())]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, env=dict(environ), start_new_session=True, bufsize=0
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._jobs, self._answers = self._process.stdin, self._process.stdout
        self._prints = self._process.stderr
        for stream in (self._jobs, self._answers, self._prints):
            _unblock(stream.fileno())
        self._outgoing, self._incoming, self._printed = bytearray(), bytearray(), bytearray()
        self.printed: list[str] = []
        self.has_ended = False

    def send(self, message: Mapping[str, Json]) -> None:
        """Queue a JSON line; `pump` writes it as the pipe takes it."""
        self._outgoing += json.dumps(message, default=as_json).encode() + b"\n"

    def pump(self) -> list[Json]:
        """Move what the pipes take and hold; return the answers that are complete. Sets `has_ended` at the end."""
        self._write()
        if not self.has_ended and not _read_into(self._incoming, self._answers.fileno()):
            self.has_ended = True
        if len(self._incoming) > MAX_ANSWER_BYTES:
            self.has_ended = True
        self._listen()  # after the answers: what was printed before an answer is there by now
        *lines, rest = bytes(self._incoming).split(b"\n")
        self._incoming = bytearray(rest)
        try:
            return [json.loads(line) for line in lines]
        except ValueError:  # the reward wrote into the pipe of the protocol
            self.has_ended = True
            return []

    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def how_it_ended(self) -> str:
        """In words; waits a moment for a process that has just closed its pipe."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=0.5)
        code = self._process.returncode
        if code is None:
            return "closed its connection"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"died of {signal.Signals(-code).name}"
        return f"ended its process with exit code {code}"

    def end(self) -> None:
        """Kill it and everything that it started."""
        pid = self._process.pid
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)  # so that it starts nothing while its family is counted
            for _ in range(5):
                family = _descendants(pid)
                for member in family:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(member, signal.SIGKILL)
                if not family:
                    break
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._listen()
        for stream in (self._jobs, self._answers, self._prints):
            with contextlib.suppress(OSError):
                stream.close()

    def watch(self, poller: select.poll) -> None:
        """Register the pipes that something can happen on."""
        poller.register(self._answers.fileno(), select.POLLIN)
        poller.register(self._prints.fileno(), select.POLLIN)
        if self._outgoing:
            poller.register(self._jobs.fileno(), select.POLLOUT)

    def _write(self) -> None:
        try:
            while self._outgoing:
                written = os.write(self._jobs.fileno(), memoryview(self._outgoing)[:65536])
                del self._outgoing[:written]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it died; reading tells
            self._outgoing.clear()

    def _listen(self) -> None:
        """Keep the first lines it prints; drop the rest unread, so that a flood costs neither memory nor a hang."""
        _read_into(self._printed, self._prints.fileno())
        if len(self.printed) < MAX_RELAYED_LINES:
            *lines, rest = bytes(self._printed).split(b"\n")
            texts = [line[:200].decode(errors="replace").rstrip() for line in lines[:MAX_RELAYED_LINES]]
            self.printed.extend(text for text in texts if text)
            self._printed = bytearray(rest)
        if len(self.printed) >= MAX_RELAYED_LINES or len(self._printed) > 65536:
            self._printed.clear()


def _unblock(descriptor: int) -> None:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_NONBLOCK)


def _read_into(buffer: bytearray, descriptor: int, most: int = 2**20) -> bool:
    """Append what is there, at most about `most` bytes; False at the end of the stream."""
    taken = 0
    while taken < most:
        try:
            chunk = os.read(descriptor, 65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not chunk:
            return False
        buffer += chunk
        taken += len(chunk)
    return True


def _descendants(pid: int) -> list[int]:
    """Living children of a process, and theirs, from /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    return _below(pid, children)


def _below(pid: int, children: Mapping[int, Sequence[int]]) -> list[int]:
    own = list(children.get(pid, ()))
    return own + [member for child in own for member in _below(child, children)]
