"""Supervised examples mixed into a run's optimizer steps (PPO-ptx of InstructGPT, arXiv:2203.02155, equation 2).

Examples are drawn as prompts are: passes without end, each in an order of its own from the run's seed, so that a
resumed run goes on with the example that was next. Every rank draws the examples of all and takes its share.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

from lightrft_core.abilities import MixingStrategy
from lightrft_core.data import Batch, Group, Prompt, Rollout, seed_for
from lightrft_core.errors import UserError
from lightrft_core.protocols import Json, ModelAdapter, Strategy
from lightrft_core.sections import MixInSection
from lightrft_core.tasks.prompts import Keys, to_prompt
from lightrft_core.tasks.readers import BadRow, Row, data_files, read_rows
from lightrft_core.tasks.rows import RowsTask

logger = logging.getLogger(__name__)
WHERE = "optim.ptx.path"


class MixIn:
    """Hands the strategy fresh examples before each optimizer step; its state is the cursor."""

    def __init__(self, section: MixInSection, model: ModelAdapter, strategy: MixingStrategy, seed: int) -> None:
        self._section, self._model, self._strategy = section, model, strategy
        fitting = load_examples(section, model)
        named = [replace(example, id=f"{index}:{example.id}") for index, example in enumerate(fitting)]
        self._examples = RowsTask(named, seed=seed_for(seed, "ptx"))

    def __call__(self) -> None:
        """Draw, and give this rank's share to the next step."""
        world = self._strategy.world
        share = self._examples.draw(self._section.batch_size)[world.rank :: world.size]
        self._strategy.mix_in(self._collated(share), self._section.coef)

    def state_dict(self) -> dict[str, Json]:
        """The cursor, and the data that it belongs to."""
        return self._examples.state_dict()

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Go on with the example that was next."""
        self._examples.load_state_dict(state)

    def _collated(self, examples: Iterable[Prompt]) -> Batch:
        """At temperature 1, whatever the run samples with: examples were not sampled."""
        return replace(self._model.collate([_group(example, self._model) for example in examples]), temperature=1.0)


def nothing() -> None:
    """What a run without examples does before a step."""


def before_update(
    section: MixInSection | None, model: ModelAdapter, strategy: Strategy, seed: int
) -> Callable[[], None]:
    """What a run does before each optimizer step: hand examples to the strategy, where it has some."""
    return nothing if section is None else MixIn(section, model, cast(MixingStrategy, strategy), seed)


def load_examples(section: MixInSection, model: ModelAdapter) -> list[Prompt]:
    """The examples that fit, their response as reference; `UserError` for bad rows, or none that fits."""
    examples = [example for path in section.path for example in _examples(path)]
    fitting = [example for example in examples if _length(_group(example, model)) <= section.max_tokens]
    if len(fitting) < len(examples):
        logger.warning("%s: %d of %d examples are too long", WHERE, len(examples) - len(fitting), len(examples))
    if not fitting:
        raise UserError("no example fits.", where=WHERE, hint=f"max_tokens is {section.max_tokens}.")
    return fitting


def _group(example: Prompt, model: ModelAdapter) -> Group:
    token_ids = (*model.encode(example.reference or ""), *model.stop_token_ids[:1])
    rollout = Rollout(example.id, 0, token_ids, "", (0.0,) * len(token_ids), "stop", 0, reward=0.0)
    return Group(example, model.render(replace(example, reference=None)), [rollout])


def _examples(path: str) -> list[Prompt]:
    """Prompts whose reference is the response. Raises `UserError` for the first bad row: these files are curated."""
    found = []
    for file in _files(path):
        for row in read_rows(file, None):
            try:
                if isinstance(row, BadRow):
                    raise UserError(row.problem)
                found.append(_example(row))
            except (UserError, ValueError) as error:
                raise UserError(f"{row.where}: {error}", where=WHERE) from None
    return found


def _example(row: Row) -> Prompt:
    data = dict(row.data)
    messages = data.pop("messages", None)
    if isinstance(messages, list) and messages and isinstance(messages[-1], Mapping):
        data |= {"prompt": messages[:-1], "response": messages[-1].get("content")}
    if not data.get("prompt") or not isinstance(data.get("response"), str) or not data["response"]:
        raise ValueError("needs `prompt` and a `response`, or `messages` that end with an answer")
    return replace(to_prompt(replace(row, data=data), Keys()), reference=data["response"])


def _files(path: str) -> list[Path]:
    try:
        return data_files(path, None)
    except UserError as error:
        raise UserError(error.what, where=WHERE, hint=error.hint) from None


def _length(group: Group) -> int:
    return len(group.prompt_token_ids) + len(group.rollouts[0].token_ids)
