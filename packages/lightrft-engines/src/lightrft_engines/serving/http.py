"""JSON over HTTP/1.1 to an engine's server, by threads that keep their connections: no package is needed for it."""

import http.client
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

from lightrft_core.errors import RunFailed

Item = TypeVar("Item")
Json = Any  # what json.loads gives
FOREVER = math.inf  # a time limit that is none
AGAIN = 1.0  # seconds
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Refused(RunFailed):
    """The server answered, and said no; `status` is HTTP's, `retry_after` the seconds that it asks to wait."""

    def __init__(self, what: str, status: int, where: str, retry_after: float | None = None) -> None:
        super().__init__(what, where=where)
        self.status, self.retry_after = status, retry_after


class Unreachable(RunFailed):
    """Nothing answers at the address, or the answer broke off."""


class Client:
    """Calls one server; every thread has a connection of its own, which lives on between calls.

    A path in `url` goes before that of each call. `headers` go with every call and into no message.
    """

    def __init__(
        self, url: str, timeout: float, max_connections: int, headers: Mapping[str, str] | None = None
    ) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        is_secure = parts.scheme == "https"
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._prefix = parts.path.rstrip("/")
        self._kind = http.client.HTTPSConnection if is_secure else http.client.HTTPConnection
        self._address = (parts.hostname or "", parts.port or (443 if is_secure else 80))
        self._timeout, self._headers = timeout, {"Content-Type": "application/json", **(headers or {})}
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(max_connections, thread_name_prefix="engine")

    @property
    def is_loopback(self) -> bool:
        """Whether the server can only be this machine."""
        return self._address[0] in LOOPBACK

    def get(self, path: str, *, timeout: float | None = None) -> Json:
        """A GET's JSON answer."""
        return self._call("GET", path, None, timeout)

    def post(
        self, path: str, body: Json = None, *, query: Mapping[str, Any] | None = None, timeout: float | None = None
    ) -> Json:  # Any: query values are written by str
        """A POST's JSON answer; None where it is empty."""
        return self._call("POST", f"{path}?{urlencode(query)}" if query else path, body, timeout)

    def post_to(self, route: str, body: Mapping[str, Any]) -> Json:  # Any: JSON
        """A POST to a route by its name."""
        return self.post(f"/{route}", body)

    def each(
        self, do: Callable[[Item], None], items: Sequence[Item], limit: float | None, at_limit: Callable[[], None]
    ) -> BaseException | None:
        """Do it for all items side by side and wait for all. Where that takes longer than `limit` seconds, `at_limit`
        is called, and again every second: the server may not know yet what it is to end. Returns the first thing that
        went wrong; what has not begun by then does not begin."""
        futures = [self._pool.submit(do, item) for item in items]
        done, open_ = wait(futures, limit, FIRST_EXCEPTION)
        problem: BaseException | None = None
        while open_ and not any(future.exception() for future in done):
            try:
                if problem is None:
                    at_limit()
            except RunFailed as error:  # what still waits for the server will tell too, or be cut off by its limit
                problem = error
            done, open_ = wait(futures, AGAIN if problem is None else None, FIRST_EXCEPTION)
        for future in open_:
            future.cancel()
        wait(futures)
        errors = [future.exception() for future in futures if not future.cancelled()]
        return problem or next((error for error in errors if error is not None), None)

    def close(self) -> None:
        """Let the threads go."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _call(self, method: str, path: str, body: Json, timeout: float | None) -> Json:
        data = None if body is None else json.dumps(body).encode()
        for attempt in (1, 2):
            connection, is_fresh = self._connection(timeout)
            try:
                connection.request(method, self._prefix + path, data, self._headers)
                response = connection.getresponse()
                text = response.read()
                break
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                # A server may have closed an idle connection: that says nothing about the server.
                if is_fresh or attempt == 2 or isinstance(error, TimeoutError):
                    raise Unreachable(f"{method} {path}: {error or type(error).__name__}", where=self.url) from error
        if response.status >= 300:  # a redirection is none of a server's answers, and is not followed
            wait = _seconds(response.getheader("Retry-After"))
            raise Refused(_reason(text, response.status), response.status, f"{self.url}{path}", wait)
        return json.loads(text) if text else None

    def _connection(self, timeout: float | None) -> tuple[http.client.HTTPConnection, bool]:
        known: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        wanted = self._timeout if timeout is None else timeout
        limit = None if wanted == FOREVER else wanted
        if known is None:
            self._local.connection = self._kind(*self._address, timeout=limit)
            return self._local.connection, True
        known.timeout = limit
        if known.sock is not None:
            known.sock.settimeout(limit)
        return known, known.sock is None

    def _drop(self) -> None:
        self._local.connection.close()
        self._local.connection = None


def _seconds(header: str | None) -> float | None:
    """Of a `Retry-After` that counts seconds; one that names a date is left to the caller's own patience."""
    return float(header) if header is not None and header.isascii() and header.isdecimal() else None


def _reason(text: bytes, status: int) -> str:
    """The server's own words."""
    try:
        answer = json.loads(text)
    except ValueError:
        return text.decode(errors="replace").strip() or f"HTTP {status}"
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if isinstance(error, dict):
        return str(error.get("message") or error.get("detail") or error)
    return str(error)
