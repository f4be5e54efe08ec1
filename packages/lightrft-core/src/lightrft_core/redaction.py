"""Secrets never reach a file: what looks like one, or is the value of a secret environment variable, becomes `***`."""

import os
import re
from collections.abc import Mapping

from lightrft_core.protocols import Json

MASK = "***"
_SECRET_WORDS = frozenset(
    ("KEY", "APIKEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASS", "CREDENTIAL", "CREDENTIALS", "AUTH")
)
_HARMLESS_ENDINGS = ("_PATH", "_FILE", "_DIR", "_SOCK", "_URL", "_ENV", "_ID")
_MIN_LENGTH = 8
_SHAPES = (
    re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"),
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{16,}"),
    re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    re.compile(r"(?<=[Bb]earer )[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"(?<=://)[^\s/@:]+:[^\s/@]+(?=@)"),
    re.compile(
        r"(?mi)(?<=^)(?P<key>[\s-]*[\w.-]*(?:api_?key|secret|passw(?:or)?d|auth_token|access_token)\"?: +)\S.*$"
    ),
)


def redact(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """`text` without secrets: values of environment variables named like `HF_TOKEN`, known key shapes, URL logins."""
    for secret in sorted(_secrets(environ), key=len, reverse=True):
        text = text.replace(secret, MASK)
    for shape in _SHAPES:
        text = shape.sub(_masked, text)
    return text


def redact_json(value: Json, environ: Mapping[str, str] = os.environ) -> Json:
    """The same for every text inside a JSON value, keys included; values under a key such as `api_key` always go."""
    if isinstance(value, str):
        return redact(value, environ)
    if isinstance(value, Mapping):
        return {
            redact(str(key), environ): MASK
            if isinstance(item, str) and _is_secret(str(key))
            else redact_json(item, environ)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_json(item, environ) for item in value]
    return value


def _masked(match: re.Match[str]) -> str:
    return match.groupdict().get("key", "") + MASK


def _secrets(environ: Mapping[str, str]) -> set[str]:
    return {value for name, value in environ.items() if len(value) >= _MIN_LENGTH and _is_secret(name)}


def _is_secret(name: str) -> bool:
    upper = name.upper().replace("-", "_")
    return not upper.endswith(_HARMLESS_ENDINGS) and not _SECRET_WORDS.isdisjoint(_words(upper))


def _words(upper: str) -> list[str]:
    words = upper.split("_")
    # `pad_token` and `stop_tokens` name words of a vocabulary, not secrets
    return [word for i, word in enumerate(words) if word != "TOKEN" or i == 0 or words[i - 1] not in _VOCABULARY]


_VOCABULARY = frozenset(("PAD", "EOS", "BOS", "UNK", "MASK", "SEP", "CLS", "STOP", "PER", "NEW", "IMAGE"))
