"""`lightrft rollouts RUN`: search and read what the model wrote, also while the run goes on."""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lightrft_core.stored_rollout import StoredRollout


class Order(StrEnum):
    """What comes first."""

    step = "step"
    reward = "reward"
    length = "length"


class Phase(StrEnum):
    """Which rollouts."""

    train = "train"
    eval = "eval"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("rollouts")(rollouts)


def rollouts(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its name.")],
    step: Annotated[int | None, typer.Option(metavar="NUMBER", help="Only this step.")] = None,
    min_reward: Annotated[float | None, typer.Option(metavar="NUMBER", help="Only rewards from here up.")] = None,
    max_reward: Annotated[float | None, typer.Option(metavar="NUMBER", help="Only rewards up to here.")] = None,
    text: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only completions that hold this text; case is ignored.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="ID", help="Only completions of the prompt with this id.")
    ] = None,
    phase: Annotated[Phase | None, typer.Option(help="Only training or only evaluation.")] = None,
    order: Annotated[Order, typer.Option(help="Newest step, highest reward or longest completion first.")] = Order.step,
    limit: Annotated[int, typer.Option(min=1, metavar="NUMBER", help="Show at most so many.")] = 20,
    full: Annotated[bool, typer.Option("--full", help="Show whole prompts and completions.")] = False,
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Folder that holds the runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Search and read what the model wrote."""
    from lightrft_core.rundir import RunDir
    from lightrft_core.store import Query, RolloutStore

    store = RolloutStore(RunDir.find(run, folder).rollouts, readonly=True)
    query = Query(step, min_reward, max_reward, text, prompt, phase.value if phase else None)
    found = store.find(query, limit=limit, order=order.value)
    total = store.count(query)
    store.close()
    if as_json:
        for item in found:
            print(json.dumps(asdict(item)))
        return
    for item in found:
        print(page_of(item) if full else line_of(item))
    print(f"{len(found)} of {total} rollouts" + ("; --limit shows more" if len(found) < total else ""))
    if found and not full:
        print("--full shows whole texts, --json everything that is known of them")


def line_of(item: "StoredRollout") -> str:
    """One rollout on one line, the end of the text rather than its start: there the answer stands."""
    from lightrft_core.printable import one_line

    score = "unscored" if item.reward is None else f"{item.reward:.3f}"
    head = f"{item.phase} step {item.step:<5} {one_line(item.prompt_id, 20)}#{item.index:<3} reward {score:<8} "
    tail = item.text if len(item.text) <= 100 else f"… {item.text[-98:]}"
    cut = " [cut off]" if item.finish_reason == "length" else ""
    return f"{head} {len(item.token_ids):>5} tokens{cut}  {one_line(tail.strip(), 110)}"


def page_of(item: "StoredRollout") -> str:
    """One rollout in full."""
    from lightrft_core.printable import one_line, printable

    scores = ", ".join(f"{printable(name)} {value:g}" for name, value in item.scores.items())
    reward = f"unscored: {printable(item.unscored or 'no reason given')}" if item.reward is None else f"{item.reward:g}"
    shaped = f" (shaped to {item.shaped_reward:g})" if item.shaped_reward not in (None, item.reward) else ""
    lines = [
        f"== {item.phase} step {item.step}  prompt {one_line(item.prompt_id, 60)}  sibling {item.index}",
        f"reward {reward}{shaped}" + (f"   {scores}" if scores else ""),
        f"{len(item.token_ids)} tokens, ended by {item.finish_reason}, policy version {item.policy_version}",
        *(f"-- {printable(message.get('role', ''))}\n{printable(message.get('content', ''))}"
          for message in item.messages),
        *(f"-- {media['kind']}: {printable(media['source'])}" for media in item.media),
        *([f"-- reference\n{printable(item.reference)}"] if item.reference is not None else []),
        f"-- completion\n{printable(item.text)}",
        "",
    ]  # fmt: skip
    return "\n".join(lines)
