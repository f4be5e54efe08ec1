"""The `word_problems` task: prompts made from a seed, with no file and no download."""

from typing import Literal

from lightrft_core.data import Prompt
from lightrft_core.protocols import Setup
from lightrft_core.sections import TaskSection
from lightrft_core.tasks.lengths import fitting
from lightrft_core.tasks.prompts import with_system
from lightrft_core.tasks.rows import RowsTask
from pydantic import Field

from lightrft_rewards.word_problems import MAX_PROBLEMS, problems

LABEL = "word_problems"


class WordProblemsConfig(TaskSection):
    """Made-up word problems in GSM8K's form."""

    split: Literal["train", "test"] = "train"
    """No question of one is in the other."""
    num: int = Field(default=4096, ge=1, le=MAX_PROBLEMS)
    """How many."""
    seed: int = Field(default=0, ge=0)
    """Which; beside the run's seed, so that every run has the same questions."""


class WordProblemsTask(RowsTask):
    """Questions with their number as reference and the label `word_problems`."""

    def __init__(self, config: WordProblemsConfig, setup: Setup) -> None:
        made = problems(config.num, config.seed, split=config.split)[: config.max_prompts]
        prompts = [
            Prompt(
                f"{config.split}-{config.seed}-{number}",
                with_system([{"role": "user", "content": problem.question}], config.system_prompt),
                label=LABEL,
                reference=str(problem.answer),
            )
            for number, problem in enumerate(made)
        ]
        chosen = fitting(prompts, config, setup.require_model())
        super().__init__(chosen, seed=setup.run.seed, shuffle=config.shuffle)
