"""The `python` reward: a function of the user's, in a file or an installed module.

    def reward(responses, labels, references, **kw) -> list[float]

It is given what it has parameters for. LightRFT's older `reward_fn(model_reward_list, labels, queries, refs,
label_map)` works too: `queries` and `refs` are the responses and references, and it may return tensors with parts.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightrft_core.data import Score, ScoreRequest
from lightrft_core.errors import UserError
from lightrft_core.loading import load_object
from lightrft_core.sections import RewardSection
from lightrft_core.verdicts import as_scores, unscored
from pydantic import Field, field_validator

Arguments = dict[str, Any]  # Any: lists of text, ids, metadata, one entry a response
_OFFERED = (
    ("responses", "completions"),
    ("labels",),
    ("references", "ground_truths"),
    ("prompts",),
    ("prompt_ids",),
    ("metadata",),
    ("finish_reasons",),
    ("response_ids", "completion_ids"),
)
_OLDER = ("model_reward_list", "queries", "refs", "label_map")


class PythonConfig(RewardSection):
    """A Python function."""

    path: str = Field(min_length=1)
    """`my_reward.py:reward` or `package.module:function`; the name `reward` may be left out of a file."""

    @field_validator("path")
    @classmethod
    def _exists(cls, value: str) -> str:
        file, colon, name = value.rpartition(":")
        if value.endswith(".py"):
            file, colon, name = value, ":", "reward"
        if not colon or not name.isidentifier():
            raise ValueError(f"expected `file.py:function` or `package.module:function`, not {value!r}")
        if not file.endswith(".py"):
            return f"{file}:{name}"
        real = Path(file).expanduser().resolve()
        if not real.is_file():
            raise ValueError(f"there is no file {file}")
        return f"{real}:{name}"


class PythonReward:
    """Calls the function once for all requests."""

    def __init__(self, config: PythonConfig) -> None:
        self._path = config.path
        self._function = _load(config.path)
        self._names = _wanted(self._function, config.path)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """What the function returns: a list of numbers, a tensor, or a pair of these and parts by name."""
        offered = _arguments(requests)
        names = offered.keys() if self._names is None else self._names
        returned = self._function(**{name: offered[name] for name in names})
        if isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Mapping):
            return _with_parts(returned[0], returned[1], len(requests))
        return as_scores(returned, len(requests))


def _load(path: str) -> Callable[..., Any]:  # Any: a stranger's function
    file, _, name = path.rpartition(":")
    if file.endswith(".py"):
        sys.path.append(str(Path(file).parent))  # the worker's own: so that the file may import its neighbours
    try:
        function = load_object(path)
    except AttributeError as error:
        raise UserError(f"{file} has no function {name!r}", where="rewards[python].path") from error
    if not callable(function):
        raise UserError(f"{path} is {type(function).__name__}, not a function", where="rewards[python].path")
    loaded: Callable[..., Any] = function  # Any: a stranger's function
    return loaded


def _wanted(function: Callable[..., Any], path: str) -> tuple[str, ...] | None:  # Any: a stranger's function
    """Names of the arguments to give; None means all that are offered. Raises `UserError` for one that is not."""
    known = {name for names in _OFFERED for name in names} | set(_OLDER)
    parameters = inspect.signature(function).parameters.values()
    takes_rest = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    strange = [p.name for p in named if p.name not in known and p.default is inspect.Parameter.empty]
    positional = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_ONLY]
    if strange or positional:
        raise UserError(
            f"{path} wants an argument {(strange or positional)[0]!r}, which it cannot be given",
            where="rewards[python].path",
            hint=f"Arguments by name are: {', '.join(names[0] for names in _OFFERED)}; take the rest with **kw.",
        )
    mine = tuple(p.name for p in named if p.name in known)
    return tuple(dict.fromkeys((*mine, *(names[0] for names in _OFFERED)))) if takes_rest else mine


def _arguments(requests: Sequence[ScoreRequest]) -> Arguments:
    """Everything on offer; each list has one entry a response."""
    columns: Arguments = {
        "responses": [request.response for request in requests],
        "labels": [request.label for request in requests],
        "references": [request.reference for request in requests],
        "prompts": [[dict(message) for message in request.prompt.messages] for request in requests],
        "prompt_ids": [request.prompt.id for request in requests],
        "metadata": [dict(request.prompt.metadata) for request in requests],
        "finish_reasons": [request.finish_reason for request in requests],
        "response_ids": [list(request.response_token_ids) for request in requests],
    }
    aliases = {alias: columns[names[0]] for names in _OFFERED for alias in names[1:]}
    older = {
        "model_reward_list": [],
        "queries": columns["responses"],
        "refs": columns["references"],
        "label_map": {label: number for number, label in enumerate(sorted({*filter(None, columns["labels"])}))},
    }
    return {**columns, **aliases, **older}


def _with_parts(values: object, parts: Mapping[str, Any], num: int) -> list[Score]:  # Any: lists or tensors
    """Join values and parts row by row; a part of another length makes its rows unscored."""
    totals = as_scores(values, num)
    columns = {name: as_scores(column, num) for name, column in parts.items()}
    joined = []
    for row, total in enumerate(totals):
        bad = [f"part {name!r}: {column[row].reason}" for name, column in columns.items() if column[row].reason]
        if total.value is None or bad:
            joined.append(unscored(total.reason or bad[0]))
        else:
            held = {str(name): value for name, column in columns.items() if (value := column[row].value) is not None}
            joined.append(Score(total.value, parts=held))
    return joined
