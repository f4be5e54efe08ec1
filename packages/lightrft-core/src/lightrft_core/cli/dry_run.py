"""`lightrft train --dry-run`: what a step would do, shown on the user's own rows, without a model's weights."""

from typing import TYPE_CHECKING

from lightrft_core.assembly import rehearse
from lightrft_core.cli.banner import banner
from lightrft_core.data import Group, Prompt, Rollout

if TYPE_CHECKING:
    from lightrft_core.plugins import Plugins
    from lightrft_core.protocols import ModelAdapter
    from lightrft_core.runfile import RunFile
    from lightrft_core.scoring import RewardSet
NUM_ROWS = 2


def show(run_file: "RunFile", plugins: "Plugins") -> None:
    """Print the plan, sample rows with the trained tokens marked, and a reward called on a real row."""
    from rich.console import Console

    console = Console(highlight=False)
    parts = rehearse(run_file, plugins)
    for line in banner(run_file, plugins, parts.batch):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"steps      {parts.num_steps} over {len(parts.task)} prompts", markup=False)
    try:
        for prompt in parts.task.everything()[:NUM_ROWS]:
            _show_row(console, parts.model, parts.rewards, prompt)
    finally:
        parts.rewards.close()
    console.print("dry run: everything was checked, nothing was trained.")


def _show_row(console: "object", model: "ModelAdapter", rewards: "RewardSet", prompt: Prompt) -> None:
    """One row: the prompt's tokens dim, a completion that is the reference in green (it would train), its scores."""
    from rich.console import Console
    from rich.text import Text

    assert isinstance(console, Console)
    prompt_ids = model.render(prompt)
    answer = prompt.reference or ""
    rollout = _imagined(model, prompt, answer)
    text = Text()
    for piece in model.pieces(prompt_ids):
        text.append(_visible(piece), style="dim")
    for piece in model.pieces(rollout.token_ids):
        text.append(_visible(piece), style="bold green underline")
    group = Group(prompt, prompt_ids, [rollout])
    rewards.score([group])
    verdict = f"reward {rollout.reward}" if rollout.reward is not None else f"unscored: {rollout.unscored}"
    console.rule(f"row {prompt.id}", align="left")
    console.print(text)
    console.print(
        f"{len(prompt_ids)} prompt tokens (dim); {len(rollout.token_ids)} tokens (green) would train. The reference "
        f"itself as the answer gets: {verdict} {dict(rollout.scores)}",
        markup=False,
    )


def _imagined(model: "ModelAdapter", prompt: Prompt, answer: str) -> Rollout:
    """A completion as if the model had answered with the reference."""
    token_ids = model.encode(answer) + model.stop_token_ids[:1]
    return Rollout(prompt.id, 0, token_ids, answer, (0.0,) * len(token_ids), "stop", 0)


def _visible(piece: str) -> str:
    return piece.replace("\n", "\\n\n")
