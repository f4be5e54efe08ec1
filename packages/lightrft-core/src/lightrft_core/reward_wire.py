"""How score requests and verdicts travel to a reward's worker process: plain JSON, media bytes as base64, no pickle.

Siblings share their prompt, so a job holds each prompt once and its rows point at it.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from lightrft_core.data import Media, Prompt, Score, ScoreRequest
from lightrft_core.protocols import Json


def encode_requests(requests: Sequence[ScoreRequest], *, with_media: bool) -> dict[str, Json]:
    """A job as JSON; without media the prompts' images, video and audio stay behind."""
    numbers: dict[int, int] = {}
    prompts: list[Json] = []
    rows: list[Json] = []
    for request in requests:
        key = id(request.prompt)
        if key not in numbers:
            numbers[key] = len(prompts)
            prompts.append(_encode_prompt(request.prompt, with_media=with_media))
        rows.append([numbers[key], request.response, list(request.response_token_ids), request.finish_reason])
    return {"prompts": prompts, "rows": rows}


def decode_requests(job: Mapping[str, Json]) -> list[ScoreRequest]:
    """The inverse of `encode_requests`."""
    prompts = [_decode_prompt(item) for item in job["prompts"]]
    return [
        ScoreRequest(response, tuple(token_ids), prompts[number], finish_reason)
        for number, response, token_ids, finish_reason in job["rows"]
    ]


def encode_score(score: Score) -> Json:
    """A verdict as JSON."""
    return [score.value, dict(score.parts), score.reason]


def decode_score(item: Json) -> Score:
    """The inverse of `encode_score`."""
    value, parts, reason = item
    return Score(value, parts=parts, reason=reason)


def as_json(value: object) -> Json:
    """What `json.dumps` cannot write, as text: dates and the like in a prompt's metadata."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _encode_prompt(prompt: Prompt, *, with_media: bool) -> Json:
    return {
        "id": prompt.id,
        "messages": [dict(message) for message in prompt.messages],
        "media": [_encode_media(item) for item in prompt.media] if with_media else [],
        "label": prompt.label,
        "reference": prompt.reference,
        "metadata": dict(prompt.metadata),
    }


def _decode_prompt(item: Mapping[str, Json]) -> Prompt:
    return Prompt(
        id=item["id"],
        messages=tuple(item["messages"]),
        media=tuple(_decode_media(*media) for media in item["media"]),
        label=item["label"],
        reference=item["reference"],
        metadata=item["metadata"],
    )


def _encode_media(media: Media) -> Json:
    if isinstance(media.source, bytes):
        return [media.kind, None, base64.b64encode(media.source).decode()]
    return [media.kind, media.source, None]


def _decode_media(kind: Any, path: str | None, encoded: str | None) -> Media:  # Any: a MediaKind that JSON carried
    return Media(kind, path if path is not None else base64.b64decode(encoded or ""))
