"""Prompts that are too long: dropped and counted, or refused; never cut.

Rendering thousands of prompts only to measure them is slow. A tokenizer gives at most one token per byte, so a prompt
whose bytes and template fit is not rendered at all.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from lightrft_core.data import Prompt
from lightrft_core.errors import UserError
from lightrft_core.protocols import ModelAdapter
from lightrft_core.sections import TaskSection

logger = logging.getLogger(__name__)


def fitting(prompts: Sequence[Prompt], config: TaskSection, model: ModelAdapter) -> list[Prompt]:
    """The prompts of at most `max_prompt_tokens` tokens, in order.

    Raises `UserError` for a longer one where `long_prompts` is `error`, and where none is left.
    """
    ruler = _Ruler(model)
    longest, fit = 0, []
    for prompt in prompts:
        length = ruler.length(prompt, config.max_prompt_tokens)
        longest = max(longest, length)
        if length <= config.max_prompt_tokens:
            fit.append(prompt)
        elif config.long_prompts == "error":
            raise UserError(
                f"prompt {prompt.id!r} has {length} tokens, more than max_prompt_tokens {config.max_prompt_tokens}",
                where="task.max_prompt_tokens",
                hint="Raise the limit, or set `long_prompts: drop`.",
            )
    _tell(len(prompts), len(fit), longest, config.max_prompt_tokens)
    return fit


def _tell(num: int, num_fit: int, longest: int, limit: int) -> None:
    if num and not num_fit:
        raise UserError(
            f"all {num} prompts are longer than max_prompt_tokens {limit}; the longest has {longest} tokens",
            where="task.max_prompt_tokens",
            hint=f"Raise it, for example to {longest}.",
        )
    if num_fit < num:
        logger.warning("dropped %d of %d prompts: longer than max_prompt_tokens %d", num - num_fit, num, limit)


class _Ruler:
    """Measures prompts; remembers what the chat template adds to each sequence of roles."""

    def __init__(self, model: ModelAdapter) -> None:
        self._model = model
        self._template_tokens: dict[tuple[str, ...], int] = {}

    def length(self, prompt: Prompt, limit: int) -> int:
        """Number of tokens, or an upper bound of it that is within the limit."""
        if not prompt.media:
            bound = sum(len(message["content"].encode(errors="replace")) for message in prompt.messages)
            if bound <= limit and (bound := bound + self._template(prompt)) <= limit:
                return bound
        return len(self._model.render(prompt))

    def _template(self, prompt: Prompt) -> int:
        roles = tuple(message["role"] for message in prompt.messages)
        if roles not in self._template_tokens:
            hollow = replace(prompt, messages=tuple({"role": role, "content": "."} for role in roles))
            self._template_tokens[roles] = len(self._model.render(hollow))
        return self._template_tokens[roles]
