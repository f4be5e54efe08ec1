"""The built-in `jsonl` task: prompts from json, jsonl, csv and parquet files, folders of them, and mixtures."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from lightrft_core.data import Prompt
from lightrft_core.errors import UserError
from lightrft_core.protocols import Setup
from lightrft_core.sections import TaskSection
from lightrft_core.tasks.lengths import fitting
from lightrft_core.tasks.prompts import Keys, to_prompt
from lightrft_core.tasks.readers import BadRow, Row, data_files, read_rows
from lightrft_core.tasks.rows import MixedTask, RowsTask

MAX_LOGGED_ROWS = 5

logger = logging.getLogger(__name__)


class JsonlConfig(TaskSection):
    """Prompts from files."""

    path: tuple[str, ...] = Field(min_length=1)
    """A file or folder; several, as a list or separated by commas, are a mixture."""
    probabilities: tuple[float, ...] | None = None
    """Share of the draws for each path; by default every row is equally likely."""
    split: str | None = None
    """Which files of a folder, `train` by default; beside a file called `train.jsonl`, `test` means `test.jsonl`."""
    input_key: str = "prompt"
    """Column with the prompt: text, or a list of messages with role and content."""
    input_template: str | None = None
    """Wraps a prompt that is text; `{}` is where it goes."""
    reference_key: str | None = None
    """Column with the right answer; else `reward_model.ground_truth`, `ground_truth`, GSM8K's `answer`."""
    label_key: str | None = None
    """Column that routes to rewards; else `extra_info.label`."""
    id_key: str = "id"
    """Column with a row's identity; rows without one are called `file:line`."""
    images_key: str = "images"
    """Column with images: paths, bytes or base64, one or a list."""
    videos_key: str = "videos"
    """The same for videos."""
    audio_key: str = "audio_path"
    """The same for audio clips."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do about a row that cannot be used: stop with its file and line, or skip, count and log it."""

    @field_validator("path", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return [value] if Path(value).exists() else [part.strip() for part in value.split(",") if part.strip()]

    @field_validator("probabilities", mode="before")
    @classmethod
    def _split_shares(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("probabilities")
    @classmethod
    def _positive(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and not all(math.isfinite(share) and share > 0 for share in value):
            raise ValueError("every probability must be a number above 0")
        return value

    @field_validator("input_template")
    @classmethod
    def _has_a_place(cls, value: str | None) -> str | None:
        if value is not None and "{}" not in value:
            raise ValueError("the template has no {} for the prompt to go")
        return value


class JsonlTask(MixedTask):
    """Rows of files as a task. Everything is read and checked when it is built."""

    def __init__(self, config: JsonlConfig, setup: Setup) -> None:
        parts = _load_all(config)
        if config.probabilities is None:
            parts = [[prompt for prompts in parts for prompt in prompts]]
        shares = config.probabilities or (1.0,)
        model, seed = setup.require_model(), setup.run.seed
        sources = [
            RowsTask(fitting(_first(prompts, config, share), config, model), seed=seed, shuffle=config.shuffle)
            for prompts, share in zip(parts, shares, strict=True)
        ]
        super().__init__(sources, shares)


def _first(prompts: list[Prompt], config: JsonlConfig, share: float) -> list[Prompt]:
    """The first `max_prompts` of a source; of a mixture each source gives its share of them."""
    if config.max_prompts is None:
        return prompts
    total = sum(config.probabilities or (share,))
    return prompts[: max(1, round(config.max_prompts * share / total))]


def _load_all(config: JsonlConfig) -> list[list[Prompt]]:
    """The prompts of every path, ids distinct over all of them."""
    if config.probabilities is not None and len(config.probabilities) != len(config.path):
        raise UserError(
            f"{len(config.probabilities)} probabilities for {len(config.path)} paths",
            where="task.probabilities",
            hint="Give one for each path.",
        )
    keys = _keys(config)
    taken: set[str] = set()
    return [_load(path, config, keys, taken) for path in config.path]


def _keys(config: JsonlConfig) -> Keys:
    return Keys(
        prompt=config.input_key,
        images=config.images_key,
        videos=config.videos_key,
        audios=config.audio_key,
        reference=config.reference_key,
        label=config.label_key,
        id=config.id_key,
        template=config.input_template,
        system_prompt=config.system_prompt,
    )


def _load(path: str, config: JsonlConfig, keys: Keys, taken: set[str]) -> list[Prompt]:
    prompts: list[Prompt] = []
    bad: list[tuple[str, str]] = []
    columns: set[str] = set()
    for file in data_files(path, config.split):
        for row in read_rows(file, config.split):
            if isinstance(row, BadRow):
                bad.append((row.where, row.problem))
            else:
                columns |= {name for name, value in row.data.items() if value is not None}
                _append(row, keys, prompts, bad, taken)
            if bad and config.on_bad_row == "error":
                where, problem = bad[0]
                raise UserError(problem, where=where, hint="Mend the row, or set task.on_bad_row: skip.")
    _refuse_unused(path, config, columns)
    _tell_skipped(path, bad, len(prompts))
    return prompts


def _append(row: Row, keys: Keys, prompts: list[Prompt], bad: list[tuple[str, str]], taken: set[str]) -> None:
    try:
        prompt = to_prompt(row, keys)
    except ValueError as error:
        bad.append((row.where, str(error)))
        return
    prompts.append(_renamed(prompt, row, taken))


def _renamed(prompt: Prompt, row: Row, taken: set[str]) -> Prompt:
    """The prompt under an id that no other has: a repeated one gets its file and line, then its path."""
    for name in (prompt.id, f"{prompt.id}@{row.file.name}:{row.number}", f"{prompt.id}@{row.where}"):
        if name not in taken:
            taken.add(name)
            return prompt if name == prompt.id else _with_id(prompt, name)
    raise UserError(f"the row is read twice: id {prompt.id!r}", where=row.where, hint="Name each file once.")


def _with_id(prompt: Prompt, name: str) -> Prompt:
    logger.info("prompt id %r occurs twice; this one is now %r", prompt.id, name)
    return Prompt(name, prompt.messages, prompt.media, prompt.label, prompt.reference, prompt.metadata)


def _refuse_unused(path: str, config: JsonlConfig, columns: set[str]) -> None:
    """A column that the user named must hold something in at least one row."""
    named = {"reference_key": config.reference_key, "label_key": config.label_key}
    for option, key in named.items():
        if key is not None and columns and key not in columns:
            raise UserError(
                f"no row of {path} has a column {key!r}",
                where=f"task.{option}",
                hint=f"There are: {', '.join(sorted(columns))}.",
            )


def _tell_skipped(path: str, bad: Sequence[tuple[str, str]], num: int) -> None:
    for where, problem in bad[:MAX_LOGGED_ROWS]:
        logger.warning("skipped %s: %s", where, problem)
    if bad:
        logger.warning("%s: skipped %d bad rows, kept %d", path, len(bad), num)
    if not num and bad:
        raise UserError(f"none of the {len(bad)} rows can be used; the first: {bad[0][1]}", where=bad[0][0])
    if not num:
        raise UserError(f"{path} holds no rows", where="task.path", hint="Name a file with at least one row.")
