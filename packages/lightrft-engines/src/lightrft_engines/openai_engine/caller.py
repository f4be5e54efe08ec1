"""Calls to the server: who we are, how often we ask again, and what its refusals mean for the run file."""

import os
import random
import time
from collections.abc import Mapping

from lightrft_core.errors import LightRFTError, RunFailed, UserError
from lightrft_core.protocols import Json

from lightrft_engines.openai_engine.config import OpenaiConfig
from lightrft_engines.serving.http import Client, Refused, Unreachable

PASSING = (408, 409, 429, 500, 502, 503, 504, 529)  # statuses after which the same question may be answered
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds; a pause doubles with each try
HIDDEN = "***"


class Caller:
    """One server; safe to use from the client's threads."""

    def __init__(self, config: OpenaiConfig, environ: Mapping[str, str] = os.environ) -> None:
        self._config = config
        self._key = _key(config, environ)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        url = config.url.rstrip("/").removesuffix("/v1")
        self.client = Client(url, config.timeout, config.max_connections, headers)

    def models(self) -> list[str]:
        """Names of the models there; asked once, so that a wrong address is told at once."""
        try:
            answer = self.client.get("/v1/models")
            return [str(item["id"]) for item in answer["data"]]
        except Unreachable as error:
            hint = "Is the server running? `lightrft serve` starts one."
            raise UserError(f"nothing answers: {self._told(error)}.", where="engine.url", hint=hint) from None
        except Refused as error:
            raise self.explained(error) from None
        except (ValueError, KeyError, TypeError):
            hint = "It must answer /v1/models as OpenAI's does."
            raise UserError(f"{self._config.url} is another kind of server.", where="engine.url", hint=hint) from None

    def complete(self, body: Json, deadline: float) -> Json | None:
        """An answer; None where there is none before `deadline`, by the monotonic clock. Asks again, in bounds."""
        for attempt in range(self._config.retries + 1):
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            try:
                return self._post(body, min(left, self._config.timeout))
            except (Refused, Unreachable) as error:
                if time.monotonic() >= deadline:
                    return None
                if attempt == self._config.retries or not _is_passing(error):
                    raise self.explained(error) from None
                time.sleep(min(_pause(attempt, error), max(deadline - time.monotonic(), 0)))
        raise AssertionError("the last attempt returns or raises")

    def attempt(self, body: Json) -> Json | None:
        """An answer to a trial; None where the server does not take such a body."""
        try:
            return self._post(body, self._config.timeout)
        except Refused as error:
            if error.status in (400, 422):
                return None
            raise self.explained(error) from None
        except Unreachable as error:
            raise self.explained(error) from None

    def _post(self, body: Json, timeout: float) -> Json:
        try:
            return self.client.post("/v1/completions", body, timeout=timeout)
        except ValueError:
            raise RunFailed("the server's answer is not JSON", where="engine.url") from None

    def explained(self, error: Refused | Unreachable) -> LightRFTError:
        """What it means for the run file; the key is in no message, even where the server repeats it."""
        if isinstance(error, Unreachable):
            is_late = isinstance(error.__cause__, TimeoutError)
            hint = "Raise engine.timeout, or lower engine.max_connections." if is_late else "Is it still running?"
            return RunFailed(f"the server does not answer ({self._told(error)})", where="engine.url", hint=hint)
        if error.status in (401, 403):
            return self._about_key(error.status)
        if error.status in (404, 405) or error.status < 400:
            what = f"{self._config.url} answers {error.status}: {self._told(error)}."
            return UserError(what, where="engine.url", hint="Give the address before /v1, and a model that it has.")
        return RunFailed(f"the server refuses ({error.status}): {self._told(error)}", where="engine")

    def _about_key(self, status: int) -> UserError:
        variable = self._config.api_key_env
        if variable is None:
            hint = "Name the environment variable that holds it: engine.api_key_env."
            return UserError(f"the server asks for a key ({status}).", where="engine.api_key_env", hint=hint)
        what = f"the server does not take the key in {variable} ({status})."
        return UserError(what, where="engine.api_key_env", hint="Put another into it, or name another variable.")

    def _told(self, error: LightRFTError) -> str:
        text = error.what.replace(self._key, HIDDEN) if self._key else error.what
        return text.strip().rstrip(".")[:400]


def _key(config: OpenaiConfig, environ: Mapping[str, str]) -> str | None:
    if config.api_key_env is None:
        return None
    key = environ.get(config.api_key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        what = f"the variable {config.api_key_env} holds no key." if not key else "the key is no line of plain text."
        hint = f"Set it: export {config.api_key_env}=..., or leave engine.api_key_env out."
        raise UserError(what, where="engine.api_key_env", hint=hint)
    return key


def _is_passing(error: Refused | Unreachable) -> bool:
    if isinstance(error, Refused):
        return error.status in PASSING
    return not isinstance(error.__cause__, TimeoutError)  # what took too long once would again


def _pause(attempt: int, error: Refused | Unreachable) -> float:
    """Twice as long each time, somewhat at random so that many who wait do not come back together."""
    asked = error.retry_after if isinstance(error, Refused) else None
    own = FIRST_PAUSE * 2.0**attempt * random.uniform(0.75, 1.25)
    return min(max(own, asked or 0.0), LONGEST_PAUSE)
