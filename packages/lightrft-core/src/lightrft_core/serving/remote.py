"""A running server of OpenAI's kind as the other side of a chat: standard library HTTP, one request an answer."""

import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO
from urllib.parse import urlsplit

from lightrft_core.errors import RunFailed, UserError
from lightrft_core.protocols import Json
from lightrft_core.serving.conversation import Message

PATIENCE = 600.0  # seconds in which the server must send something more
EVENT = "data:"


@dataclass(frozen=True, slots=True)
class RemoteAnswerer:
    """`Answerer` at a URL, with or without the `/v1` at its end. `options` are fields of the chat route."""

    url: str
    key: str | None
    options: Mapping[str, Json]

    def answer(self, messages: list[Message]) -> Iterator[str]:
        """As the server streams it."""
        body = {**self.options, "messages": messages, "stream": True}
        with self._ask("POST", "/chat/completions", body) as response:
            for event in events(response):
                if "error" in event:
                    raise RunFailed(str(event["error"].get("message", event["error"])), where=self.url)
                for choice in event["choices"]:
                    yield choice["delta"].get("content") or ""

    def only_model(self) -> str:
        """The name of the model that the server has; `UserError` where it has several."""
        with self._ask("GET", "/models", None) as response:
            names = [item["id"] for item in json.loads(response.read())["data"]]
        if len(names) != 1:
            raise UserError("the server has several models.", where="--model", hint=f"Name one of {', '.join(names)}.")
        return str(names[0])

    def _ask(self, method: str, path: str, body: Json) -> http.client.HTTPResponse:
        parts = urlsplit(self.url if "//" in self.url else f"http://{self.url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{self.url} is no address.", where="--url", hint="For example http://127.0.0.1:8000.")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        prefix = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
        try:
            connection = kind(parts.hostname, parts.port, timeout=PATIENCE)
            connection.request(method, prefix + path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise UserError(f"nothing answers at {self.url}: {error}.", where="--url", hint="Is it running?") from error
        if response.status == 401:
            hint = "Name the variable that holds it: --api-key-env NAME."
            raise UserError("the server wants another key.", where=self.url, hint=hint)
        if response.status >= 300:
            raise UserError(f"{_reason(response.read())}.", where=f"{self.url} ({response.status})")
        return response


def events(response: IO[bytes]) -> Iterator[Json]:
    """The JSON of server-sent events, up to `[DONE]`; `RunFailed` where they break off."""
    try:
        for line in response:
            text = line.decode().strip()
            if text == f"{EVENT} [DONE]":
                return
            if text.startswith(EVENT):
                yield json.loads(text.removeprefix(EVENT))
    except (OSError, http.client.HTTPException) as error:
        raise RunFailed(f"the answer broke off: {error}", where="--url") from error
    raise RunFailed("the answer broke off", where="--url")


def _reason(text: bytes) -> str:
    try:
        answer = json.loads(text)
    except ValueError:
        return text.decode(errors="replace").strip()[:400] or "the server refuses"
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return str(error.get("message", error) if isinstance(error, dict) else error).rstrip(".")
