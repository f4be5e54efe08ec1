"""`lightrft chat RUN | DIR | MODEL`, or `lightrft chat --url URL`: a chat in the terminal, or with what is piped in."""

import secrets
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from lightrft_core.cli.serve import EngineName, Sets, Step, key_of

if TYPE_CHECKING:
    from lightrft_core.protocols import Json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("chat", help="Talk to a checkpoint, a model, or a running server.")(chat)


def chat(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN | DIR | MODEL", help="A run, a checkpoint's folder, or a model.", show_default=False
        ),
    ] = None,
    step: Step = None,
    engine: EngineName = None,
    sets: Sets = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system message.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0, max=1, help="Nucleus sampling; 1 is off.")] = 1.0,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer; by default the run's, or 512.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of the first answer; the next ones count on. Random without.")
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="Talk to this server instead.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Name of the server's model, if it has several.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="NAME", help="Variable that holds the server's key.")
    ] = None,
) -> None:
    """Lines from stdin, answers to stdout while they are written."""
    from lightrft_core.data import Sampling
    from lightrft_core.errors import UserError
    from lightrft_core.serving.conversation import Conversation, EngineAnswerer
    from lightrft_core.serving.remote import RemoteAnswerer
    from lightrft_core.serving.source import open_source

    if (what is None) == (url is None):
        raise UserError("name a run or model to talk to, or a server by --url.", where="lightrft chat")
    first = secrets.randbits(32) if seed is None else seed
    if url is not None:
        _refuse("--url", "the server has its own", {"--step": step, "--engine": engine, "--set": sets, "--seed": seed})
        options: dict[str, Json] = {"temperature": temperature, "top_p": top_p}
        options |= {} if max_new_tokens is None else {"max_tokens": max_new_tokens}
        key = key_of(api_key_env)
        options["model"] = model or RemoteAnswerer(url, key, {}).only_model()
        Conversation(RemoteAnswerer(url, key, options), _write, system).run(_lines())
        return
    _refuse("no --url", "there is no server", {"--model": model, "--api-key-env": api_key_env})
    assert what is not None
    with open_source(what, step=step, engine=engine, sets=sets or []) as source:
        sampling = Sampling(max_new_tokens or source.max_new_tokens, temperature=temperature, top_p=top_p)
        Conversation(EngineAnswerer(source, sampling, first), _write, system).run(_lines())


def _refuse(because: str, reason: str, given: dict[str, object]) -> None:
    from lightrft_core.errors import UserError

    for name, value in given.items():
        if value is not None and value != []:
            raise UserError(f"has no effect with {because}: {reason}.", where=name, hint="Leave it out.")


def _lines() -> Iterator[str]:
    """What is typed, with a mark before it where somebody sees it; Ctrl-C and Ctrl-D end it."""
    try:
        while True:
            if sys.stdin.isatty():
                print("> ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if not line:
                return
            yield line
    except KeyboardInterrupt:
        print(file=sys.stderr)


def _write(text: str) -> None:
    print(text, end="", flush=True)
