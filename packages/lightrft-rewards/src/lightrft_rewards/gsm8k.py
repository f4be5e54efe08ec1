"""The `gsm8k` task: the original jsonl file, asked so that the answer comes in a form the rewards can read."""

from pathlib import Path
from typing import Literal

from lightrft_core.data import Prompt
from lightrft_core.errors import UserError
from lightrft_core.protocols import Setup
from lightrft_core.sections import TaskSection
from lightrft_core.tasks.lengths import fitting
from lightrft_core.tasks.prompts import gsm8k_answer, with_system
from lightrft_core.tasks.readers import BadRow, Row, data_files, read_rows
from lightrft_core.tasks.rows import RowsTask
from pydantic import field_validator

LABEL = "gsm8k"
INSTRUCTIONS = {
    "hash": "\nThink step by step. Write the final answer as a number on the last line, after `####`.",
    "boxed": "\nThink step by step. Put the final answer within \\boxed{}.",
    "think": "\nFirst think within <think> and </think>, then give the final answer within \\boxed{}.",
    "none": "",
}


class Gsm8kTaskConfig(TaskSection):
    """GSM8K."""

    path: str
    """`train.jsonl` or `test.jsonl` as OpenAI published them, or the folder with both."""
    split: str | None = None
    """Which files of a folder, `train` by default; beside a file called `train.jsonl`, `test` means `test.jsonl`."""
    ask_for: Literal["hash", "boxed", "think", "none"] = "hash"
    """Instruction after the question: a `####` line, a `\\boxed{}`, thinking and a box, or none."""
    template: str = "{question}{instruction}"
    """The user's message."""

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, value: str) -> str:
        if "{question}" not in value:
            raise ValueError("the template has no {question}")
        return value


class Gsm8kTask(RowsTask):
    """Questions with the number after `####` as reference and the label `gsm8k`."""

    def __init__(self, config: Gsm8kTaskConfig, setup: Setup) -> None:
        prompts = [prompt for file in data_files(config.path, config.split) for prompt in _read(file, config)]
        chosen = fitting(prompts[: config.max_prompts], config, setup.require_model())
        super().__init__(chosen, seed=setup.run.seed, shuffle=config.shuffle)


def _read(file: Path, config: Gsm8kTaskConfig) -> list[Prompt]:
    return [_prompt(_good(row), config) for row in read_rows(file, config.split)]


def _good(row: Row | BadRow) -> Row:
    if isinstance(row, BadRow):
        raise UserError(row.problem, where=row.where, hint="Mend the row; this task skips none.")
    return row


def _prompt(row: Row, config: Gsm8kTaskConfig) -> Prompt:
    question, solution = row.data.get("question"), row.data.get("answer")
    reference = gsm8k_answer(solution) if isinstance(solution, str) else None
    if not isinstance(question, str) or reference is None:
        raise UserError(
            "expected `question` and an `answer` that ends in `#### number`",
            where=row.where,
            hint="This task reads GSM8K's own files; use task `jsonl` for others.",
        )
    text = config.template.replace("{instruction}", INSTRUCTIONS[config.ask_for]).replace("{question}", question)
    messages = with_system([{"role": "user", "content": text}], config.system_prompt)
    return Prompt(f"{row.file.name}:{row.number}", messages, label=LABEL, reference=reference)
