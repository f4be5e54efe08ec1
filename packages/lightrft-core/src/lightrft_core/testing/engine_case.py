"""The engine under test, built once for all checks, and what it is asked."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightrft_core.data import GenerateRequest, Prompt, Sampling
from lightrft_core.descriptors import Component
from lightrft_core.frozen import FROZEN
from lightrft_core.protocols import Setup
from lightrft_core.testing.results import Case, Skipped
from lightrft_core.testing.toys import toy_prompts, toy_setup

MAX_NEW_TOKENS = 6
QUESTIONS = ("3", "How many legs has a cat?", "Count to ten. " * 6)


def engine_of(case: Case) -> Any:  # Any: the engine under test
    """The engine, built once. Without a setup of the caller's, toys are tried; what cannot use them is skipped."""
    if "engine" not in case.parts:
        setup = case.given or toy_setup(case.run_dir)
        case.parts["setup"] = setup
        case.parts["engine"] = _probed(case, setup)
    engine = case.parts["engine"]
    if isinstance(engine, Skipped):
        raise engine
    return engine


def _probed(case: Case, setup: Setup) -> Any:  # Any: the engine under test, or why there is none
    if case.given is not None:
        return case.target(case.options, setup)
    try:
        engine = case.target(case.options, setup)
        engine.generate(requests(setup, num_siblings=1)[:1])
    except Exception as error:  # the boundary around a stranger's engine, which may rightly refuse toys
        return Skipped(f"a model: pass `setup=` (with toys: {type(error).__name__}: {error})")
    return engine


def requests(setup: Setup, *, num_siblings: int = 3, **changes: Any) -> list[GenerateRequest]:  # Any: Sampling fields
    """A request a prompt, with `changes` to the sampling."""
    model = setup.require_model()
    sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS, stop_token_ids=model.stop_token_ids)
    return [
        GenerateRequest(
            prompt.id,
            model.render(prompt),
            tuple(1000 * number + sibling for sibling in range(num_siblings)),
            replace(sampling, **changes),
        )
        for number, prompt in enumerate(prompts_for(setup))
    ]


def prompts_for(setup: Setup) -> Sequence[Prompt]:
    """Toy prompts, and longer ones where the model adapter has words for them."""
    model = setup.require_model()
    asked = [
        Prompt(id=f"check-{index}", messages=({"role": "user", "content": text},))
        for index, text in enumerate(QUESTIONS)
    ]
    return asked if model.render(asked[1]) else toy_prompts()[:3]


def is_frozen(case: Case) -> bool:
    """Whether it serves weights of its own, so that nothing of the trainer's is to be found."""
    return isinstance(case.descriptor, Component) and FROZEN in case.descriptor.provides
