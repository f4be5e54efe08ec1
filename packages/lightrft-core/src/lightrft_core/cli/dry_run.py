"""`lightrft train --dry-run`: what a step would do, shown on the user's own rows, without a model's weights."""

from typing import TYPE_CHECKING, NamedTuple, cast

from lightrft_core.assembly import rehearse
from lightrft_core.checkpoints import Checkpoints
from lightrft_core.cli.banner import banner
from lightrft_core.data import Group, Prompt, Rollout
from lightrft_core.descriptors import RewardComponent
from lightrft_core.printable import printable
from lightrft_core.sections import RewardSection

if TYPE_CHECKING:
    from rich.console import Console

    from lightrft_core.assembly import Rehearsal
    from lightrft_core.chosen import Chosen
    from lightrft_core.plugins import Plugins
    from lightrft_core.protocols import ModelAdapter
    from lightrft_core.rundir import RunDir
    from lightrft_core.runfile import RunFile
NUM_ROWS = 2


class Answer(NamedTuple):
    """A completion that no model wrote, and where it comes from."""

    text: str
    origin: str


def show(run_file: "RunFile", plugins: "Plugins", run_dir: "RunDir | None" = None) -> None:
    """Print the plan, sample rows with the trained tokens marked, and a reward called on a real row.

    With a folder also whether the run would go on there, and from which step.
    """
    from rich.console import Console

    console = Console(highlight=False)
    parts = rehearse(run_file, plugins)
    if run_dir is not None:
        console.print(f"run        {_beginning(run_dir)}", markup=False, soft_wrap=True)
    for line in banner(run_file, plugins, parts.batch):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"steps      {parts.num_steps} over {len(parts.task)} prompts", markup=False)
    held_out = parts.evaluation_task.everything() if parts.evaluation_task is not None else []
    console.print(f"held out   {len(held_out) or 'no'} prompts", markup=False)
    try:
        parts.rewards.check([*parts.task.everything(), *held_out])
        for prompt in parts.task.everything()[:NUM_ROWS]:
            _show_row(console, parts, _example_for(run_file, prompt), prompt)
    finally:
        parts.rewards.close()
    console.print("dry run: everything was checked, nothing was trained.")


def _beginning(run_dir: "RunDir") -> str:
    """What training in this folder would do first."""
    if not run_dir.run_yaml.is_file():
        return f"would start in {run_dir.path}, where there is no run yet"
    steps = Checkpoints(run_dir.checkpoints, keep=1).steps(resumable=True)
    if not steps:
        return f"would start anew in {run_dir.path}, which holds no checkpoint yet"
    return f"would go on in {run_dir.path} from step {steps[-1]}"


def _example_for(run_file: "RunFile", prompt: Prompt) -> Answer:
    """An answer that the weightiest reward of this prompt likes, if it says which; else the bare reference."""
    known = "" if prompt.reference is None else prompt.reference
    for chosen in sorted(run_file.rewards, key=lambda chosen: -abs(_section(chosen).weight)):
        labels, example = _section(chosen).labels, cast(RewardComponent, chosen.component).example
        is_answerable = prompt.reference is not None or "{reference}" not in example
        if example and is_answerable and (labels is None or prompt.label in labels):
            return Answer(example.replace("{reference}", known), f"the example of reward {chosen.name!r}")
    return Answer(known, "the bare reference" if known else "an empty answer")


def _section(chosen: "Chosen") -> RewardSection:
    return cast(RewardSection, chosen.config)


def _show_row(console: "Console", parts: "Rehearsal", answer: Answer, prompt: Prompt) -> None:
    """One row: the prompt's tokens dim, an imagined completion green (it would train), and what the rewards say."""
    from rich.text import Text

    prompt_ids = parts.model.render(prompt)
    rollout = _imagined(parts.model, prompt, answer.text)
    text = Text()
    for piece in parts.model.pieces(prompt_ids):
        text.append(_visible(piece), style="dim")
    for piece in parts.model.pieces(rollout.token_ids):
        text.append(_visible(piece), style="bold green underline")
    parts.rewards.score([Group(prompt, prompt_ids, [rollout])])
    verdict = f"unscored: {rollout.unscored}" if rollout.reward is None else f"reward {rollout.reward:.4g}"
    scores = "".join(f", {name} {value:.4g}" for name, value in rollout.scores.items())
    console.rule(f"row {prompt.id}", align="left")
    console.print(text)
    for line in (
        f"{len(prompt_ids)} prompt tokens (dim), {len(rollout.token_ids)} completion tokens (green): only these train",
        f"imagined completion: {answer.origin} -> {verdict}{scores}",
    ):
        console.print(line, markup=False)


def _imagined(model: "ModelAdapter", prompt: Prompt, answer: str) -> Rollout:
    """A completion as if the model had answered so."""
    token_ids = model.encode(answer) + model.stop_token_ids[:1]
    return Rollout(prompt.id, 0, token_ids, answer, (0.0,) * len(token_ids), "stop", 0)


def _visible(piece: str) -> str:
    return printable(piece).replace("\n", "\\n\n")
