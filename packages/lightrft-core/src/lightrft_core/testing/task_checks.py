"""A task: draws that a seed decides, that resume exactly, and that miss no prompt."""

import json
from typing import Any

from lightrft_core.data import Prompt
from lightrft_core.testing.results import Case, Check, require
from lightrft_core.testing.toys import toy_setup


def build(case: Case) -> Any:  # Any: the task under test
    """A fresh one."""
    return case.target(case.options, case.given or toy_setup(case.run_dir))


def prompts_are_complete(case: Case) -> None:
    """`everything()` gives as many prompts as `len` says, with ids that differ, messages, and the same each time."""
    task = build(case)
    prompts = task.everything()
    require(len(prompts) == len(task) > 0, f"len is {len(task)} but everything() gives {len(prompts)} prompts")
    require(all(isinstance(prompt, Prompt) and prompt.messages for prompt in prompts), "a prompt has no messages")
    ids = [prompt.id for prompt in prompts]
    require(len(set(ids)) == len(ids), "two prompts share an id")
    require(build(case).everything() == prompts, "a second task gives other prompts")
    require(build(case).fingerprint() == task.fingerprint(), "the fingerprint changes without the data")


def draws_are_decided_by_the_seed(case: Case) -> None:
    """Two fresh tasks draw alike, and the size of a draw does not matter."""
    num = min(len(build(case)), 50) + 2
    first, second = build(case), build(case)
    together = _ids(first.draw(num))
    apart = [prompt_id for _ in range(num) for prompt_id in _ids(second.draw(1))]
    require(len(together) == num, f"draw({num}) gave {len(together)} prompts; passes follow each other without end")
    require(apart == together, "draws of one prompt differ from one draw of many")
    require(first.draw(0) == [], "draw(0) must give nothing")


def one_pass_draws_every_prompt_once(case: Case) -> None:
    """And the next pass does so again."""
    task = build(case)
    everything = sorted(_ids(task.everything()))
    for _ in range(2):
        require(sorted(_ids(task.draw(len(task)))) == everything, "a pass misses or repeats a prompt")


def state_survives_a_resume(case: Case) -> None:
    """Through JSON into a fresh task, in the middle of the second pass."""
    task = build(case)
    task.draw(len(task) + len(task) // 2)
    state = json.loads(json.dumps(task.state_dict()))
    resumed = build(case)
    resumed.load_state_dict(state)
    num = len(task)
    require(_ids(resumed.draw(num)) == _ids(task.draw(num)), "a resumed task draws other prompts")


def _ids(prompts: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in prompts]


CHECKS: tuple[Check, ...] = (
    prompts_are_complete,
    draws_are_decided_by_the_seed,
    one_pass_draws_every_prompt_once,
    state_survives_a_resume,
)
