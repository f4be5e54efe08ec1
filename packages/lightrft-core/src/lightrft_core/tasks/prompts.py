"""A data row becomes a `Prompt`: messages, media in the order of their placeholders, reference, label, id.

Raises plain `ValueError` with what was expected; the caller knows the row.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from lightrft_core.data import Media, MediaKind, Prompt
from lightrft_core.tasks.media import PLACEHOLDER, as_media, listed
from lightrft_core.tasks.readers import Row

Columns = Mapping[str, Any]  # Any: what the file holds
GSM8K_MARK = "####"


@dataclass(frozen=True, slots=True)
class Keys:
    """Where in a row things are, and what is put around a prompt."""

    prompt: str = "prompt"
    images: str = "images"
    videos: str = "videos"
    audios: str = "audio_path"
    reference: str | None = None
    label: str | None = None
    id: str = "id"
    template: str | None = None
    system_prompt: str | None = None


@dataclass(slots=True)
class _Found:
    """Media given inside the messages, in order: a source, or None where the next of the row's column is meant."""

    items: list[tuple[MediaKind, Any]] = field(default_factory=list)  # Any: what the file holds


def to_prompt(row: Row, keys: Keys) -> Prompt:
    """The prompt of a row; its id is the row's own or `file:number`."""
    data = row.data
    found = _Found()
    messages = with_system(_messages(data, keys, found), keys.system_prompt)
    own_id = data.get(keys.id)
    return Prompt(
        id=str(own_id) if own_id not in (None, "") else f"{row.file.name}:{row.number}",
        messages=messages,
        media=_media(messages, found, row, keys),
        label=_label(data, keys),
        reference=_reference(data, keys),
        metadata=_metadata(data, keys),
    )


def with_system(messages: Sequence[Mapping[str, str]], system_prompt: str | None) -> tuple[Mapping[str, str], ...]:
    """The messages, with a system message in front where they have none and one is wanted."""
    if system_prompt is None or any(message["role"] == "system" for message in messages):
        return tuple(messages)
    return ({"role": "system", "content": system_prompt}, *messages)


def gsm8k_answer(solution: str) -> str | None:
    """What follows the last `####` of a GSM8K solution, without thousands commas; None where there is none."""
    _, mark, answer = solution.rpartition(GSM8K_MARK)
    return answer.strip().replace(",", "") if mark and answer.strip() else None


def _messages(data: Columns, keys: Keys, found: _Found) -> list[Mapping[str, str]]:
    if keys.prompt not in data:
        columns = ", ".join(map(str, data)) or "none"
        raise ValueError(f"no column {keys.prompt!r}; the row has {columns} (set task.input_key)")
    prompt = data[keys.prompt]
    if isinstance(prompt, str) and prompt.lstrip().startswith('[{"'):
        prompt = _parsed_or_text(prompt)
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError(f"column {keys.prompt!r} is empty")
        text = keys.template.replace("{}", prompt) if keys.template is not None else prompt
        return [{"role": "user", "content": text}]
    if not isinstance(prompt, list | tuple) or not prompt:
        what = "nothing" if prompt is None else "an empty list" if prompt == [] else type(prompt).__name__
        raise ValueError(
            f"column {keys.prompt!r} holds {what}, expected text or a list of messages with role and content"
        )
    return [_message(message, found) for message in prompt]


def _parsed_or_text(text: str) -> Any:  # Any: a JSON value
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _message(message: Any, found: _Found) -> Mapping[str, str]:  # Any: what the file holds
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"expected messages with role and content, found {str(message)[:80]!r}")
    content = message.get("content")
    if isinstance(content, str):
        found.items += [(_kind(name), None) for name in PLACEHOLDER.findall(content)]
        return {"role": message["role"], "content": content}
    if isinstance(content, list | tuple):
        return {"role": message["role"], "content": "".join(_part(part, found) for part in content)}
    raise ValueError(f"the content of a {message['role']} message is {type(content).__name__}, expected text or parts")


def _part(part: Any, found: _Found) -> str:  # Any: what the file holds
    """One content part as text; a media part becomes its placeholder."""
    if isinstance(part, str):
        part = {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise ValueError(f"expected content parts with a type, found {str(part)[:80]!r}")
    name = str(part.get("type", "")).removesuffix("_url").removeprefix("input_")
    if name == "text":
        text = str(part.get("text") or "")
        found.items += [(_kind(mark), None) for mark in PLACEHOLDER.findall(text)]
        return text
    if name not in get_args(MediaKind):
        raise ValueError(f"content part of type {part.get('type')!r}; known: text, image, video, audio")
    source = next((part[key] for key in (name, f"{name}_url", "path", "bytes") if part.get(key) is not None), None)
    found.items.append((_kind(name), source))
    return f"<{name}>"


def _kind(name: str) -> MediaKind:
    kinds: dict[str, MediaKind] = {"image": "image", "video": "video", "audio": "audio"}
    return kinds[name]


def _media(messages: Sequence[Mapping[str, str]], found: _Found, row: Row, keys: Keys) -> tuple[Media, ...]:
    if not found.items:  # a prompt given as plain text
        found.items = [(_kind(name), None) for m in messages for name in PLACEHOLDER.findall(m["content"])]
    columns: dict[MediaKind, list[Any]] = {  # Any: what the file holds
        "image": listed(row.data.get(keys.images)),
        "video": listed(row.data.get(keys.videos)),
        "audio": listed(row.data.get(keys.audios)),
    }
    wanted = Counter(kind for kind, source in found.items if source is None)
    names = {"image": keys.images, "video": keys.videos, "audio": keys.audios}
    for kind, items in columns.items():
        if wanted[kind] != len(items):
            hint = f" (mark the place in the text, or set task.input_template: '<{kind}>{{}}')"
            raise ValueError(
                f"the text has {wanted[kind]} <{kind}> and column {names[kind]!r} has {len(items)}; "
                f"they must be as many{'' if wanted[kind] else hint}"
            )
    queues = {kind: iter(items) for kind, items in columns.items()}
    sources = [(kind, source if source is not None else next(queues[kind])) for kind, source in found.items]
    return tuple(as_media(kind, source, row.file.parent) for kind, source in sources)


def _label(data: Columns, keys: Keys) -> str | None:
    if keys.label is not None and data.get(keys.label) is not None:
        return str(data[keys.label])
    extra = data.get("extra_info")
    label = extra.get("label") if isinstance(extra, Mapping) else None
    return None if label is None else str(label)


def _reference(data: Columns, keys: Keys) -> str | None:
    if keys.reference is not None and data.get(keys.reference) is not None:
        reference = _text(data[keys.reference])
        return gsm8k_answer(reference) or reference
    model = data.get("reward_model")
    if isinstance(model, Mapping) and model.get("ground_truth") is not None:
        return _text(model["ground_truth"])
    if data.get("ground_truth") is not None:
        return _text(data["ground_truth"])
    extra = data.get("extra_info")
    if isinstance(extra, Mapping) and extra.get("reference") is not None:
        return _text(extra["reference"])
    answer = data.get("answer")
    return gsm8k_answer(answer) if isinstance(answer, str) and keys.prompt == "question" else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _metadata(data: Columns, keys: Keys) -> dict[str, Any]:  # Any: what the file holds
    """The row's other columns, for rewards that ask for them; media stay out."""
    left_out = {keys.prompt, keys.images, keys.videos, keys.audios}
    return {str(name): value for name, value in data.items() if name not in left_out and not isinstance(value, bytes)}
