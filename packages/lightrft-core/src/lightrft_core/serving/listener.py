"""The HTTP side: who may ask, how much, and in which words a refusal is told. No path or traceback leaves the process.

Without a key only this machine is listened to, by names that are this machine's: a web page that a browser shows may
not reach the model by a name of its own.
"""

import hmac
import ipaddress
import json
import logging
import socket
import threading
from collections.abc import Generator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

from lightrft_core.errors import UserError
from lightrft_core.protocols import Json
from lightrft_core.serving.api import Api, Stream
from lightrft_core.serving.asked import Refusal

log = logging.getLogger(__name__)
MAX_BODY = 8 << 20  # bytes
MAX_CONNECTIONS = 512
PATIENCE = 60.0  # seconds in which a client must go on sending or reading
KINDS = {401: "authentication_error", 404: "not_found_error"}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def require_key(host: str, key: str | None) -> None:
    """`UserError` where others could ask without a key."""
    if key is None and not is_loopback(host):
        raise UserError(
            f"{host or 'this address'} can be reached from other machines, and there is no key.",
            where="--host",
            hint="Leave it out to listen on 127.0.0.1, or name the variable that holds a key: --api-key-env NAME.",
        )


class Listener(ThreadingHTTPServer):
    """Listens; `api` answers. `UserError` for an address that cannot be had, or that needs a key."""

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS  # the usual 5 turn away clients that come at the same moment

    def __init__(self, host: str, port: int, api: Api, key: str | None) -> None:
        require_key(host, key)
        self.api, self.key = api, key
        self.slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            hint = "Choose another --port (0 is a free one), or an address of this machine."
            raise UserError(
                f"{host}:{port} cannot be listened on: {error.strerror}.", where="--port", hint=hint
            ) from error

    @property
    def url(self) -> str:
        """Where it is."""
        host, port = self.server_address[:2]
        return f"http://{f'[{host!s}]' if ':' in str(host) else host!s}:{port}"

    def server_bind(self) -> None:
        """Without the look-up of a name that `HTTPServer` does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:  # Any: as in socketserver
        """A thread for each connection, as long as there are not too many."""
        if not self.slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # Any: as in socketserver
        """And its place is free again."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # Any: as in socketserver
        """A connection that breaks is nothing to print."""
        log.debug("a connection from %s ended", client_address, exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "lightrft", ""
    timeout = PATIENCE
    server: Listener

    def do_GET(self) -> None:
        """Routes without a body."""
        self._guarded()

    def do_POST(self) -> None:
        """Routes with one."""
        self._guarded()

    def log_message(self, format: str, *args: object) -> None:
        """For those who turn debugging on."""
        log.debug(format, *args)

    def _guarded(self) -> None:
        try:
            answer = self._route(urlsplit(self.path).path.rstrip("/"))
            if isinstance(answer, Generator):
                with closing(answer):
                    self._stream(answer)
            else:
                self._send(200, answer)
        except Refusal as refusal:
            self._refuse(refusal)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:  # the boundary of the process: whatever it is, a client learns nothing of its insides
            log.exception("%s failed", self.command)
            self._refuse(Refusal(500, "internal error; the server's log says more"))

    def _route(self, path: str) -> Json | Stream:
        api = self.server.api
        posts = {"/v1/completions": api.complete, "/v1/chat/completions": api.chat}
        if path == "/health":
            return {"status": "ok"}
        self._require_rights()
        if self.command == "GET" and path == "/v1/models":
            return api.models()
        if path in posts and self.command == "POST":
            return posts[path](self._body())
        if path in posts or path == "/v1/models":
            raise Refusal(405, f"{self.command} is not for {path}")
        raise Refusal(404, f"there is /health, /v1/models, {' and '.join(posts)}")

    def _require_rights(self) -> None:
        key = self.server.key
        if key is None:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
            if not is_loopback(host):
                raise Refusal(403, "without a key this server answers to localhost only")
            return
        given = self.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
            raise Refusal(401, "a key is needed: the header `Authorization: Bearer KEY`")

    def _body(self) -> Json:
        if self.headers.get_content_type() != "application/json":
            raise Refusal(415, "the body must be JSON: send `Content-Type: application/json`")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or "Transfer-Encoding" in self.headers:
            raise Refusal(411, "the body must come in one, with its Content-Length")
        if int(length) > MAX_BODY:
            raise Refusal(413, f"the body is longer than {MAX_BODY >> 20} MiB")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise Refusal(400, "the body is not JSON") from None

    def _refuse(self, refusal: Refusal) -> None:
        kind = KINDS.get(refusal.status, "server_error" if refusal.status >= 500 else "invalid_request_error")
        error = {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.status}
        self.close_connection = True  # what is left of the body is not read
        self._send(refusal.status, {"error": error})

    def _send(self, status: int, content: Json) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 503:
            self.send_header("Retry-After", "1")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, chunks: Stream) -> None:
        """Server-sent events; the connection ends with them. What goes wrong after the first is told as an event."""
        first = next(chunks)
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Connection", "close")
        self.end_headers()
        self._event(json.dumps(first))
        try:
            for chunk in chunks:
                self._event(json.dumps(chunk))
        except Refusal as refusal:
            self._event(json.dumps({"error": {"message": refusal.message, "code": refusal.status}}))
        self._event("[DONE]")

    def _event(self, text: str) -> None:
        self.wfile.write(f"data: {text}\n\n".encode())
