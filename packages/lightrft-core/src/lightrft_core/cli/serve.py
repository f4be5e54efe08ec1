"""`lightrft serve RUN | DIR | MODEL`: a checkpoint or a model, with any engine, behind OpenAI's routes."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from lightrft_core.serving.listener import Listener

What = Annotated[str, typer.Argument(metavar="RUN | DIR | MODEL", help="A run, a checkpoint's folder, or a model.")]
EngineName = Annotated[
    str | None, typer.Option("--engine", metavar="NAME", help="What generates; by default the run's, or `embedded`.")
]
Step = Annotated[
    int | None, typer.Option("--step", metavar="NUMBER", help="Checkpoint of this step; by default the newest.")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A key of engine or model: engine.kv_cache_gb=2")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve", help="Serve a checkpoint or a model over HTTP, as OpenAI's API.")(serve)


def serve(
    what: What,
    step: Step = None,
    engine: EngineName = None,
    sets: Sets = None,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="NAME", help="Variable that holds the key clients must send.")
    ] = None,
) -> None:
    """The engine works in this thread, clients are heard in others; Ctrl-C ends both."""
    from lightrft_core.serving.api import Api, Served
    from lightrft_core.serving.desk import Desk
    from lightrft_core.serving.listener import Listener, require_key
    from lightrft_core.serving.source import open_source

    key = key_of(api_key_env)
    require_key(host, key)  # before a model is loaded
    with _ends_quietly(), open_source(what, step=step, engine=engine, sets=sets or []) as source:
        desk = Desk(source.engine)
        served = Served(source.name, source.adapter, source.max_new_tokens, source.limits)
        with Listener(host, port, Api(served, desk), key) as listener, _listening(listener):
            print(f"serving {source.name} at {listener.url}/v1 (Ctrl-C ends)", flush=True)
            try:
                desk.run()
            finally:
                desk.close()


def key_of(variable: str | None) -> str | None:
    """The key in an environment variable; `UserError` where it holds none."""
    from lightrft_core.errors import UserError

    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        hint = f"Set it: export {variable}=..., or name another."
        raise UserError(f"the variable {variable} holds no key.", where="--api-key-env", hint=hint)
    return key


@contextmanager
def _ends_quietly() -> Iterator[None]:
    """Ctrl-C and SIGTERM are how a server ends, and no failure; a shell's background job too is told by SIGINT."""

    def end(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = [(number, signal.signal(number, end)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    except KeyboardInterrupt:
        print("stopped.", flush=True)
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@contextmanager
def _listening(listener: "Listener") -> Iterator[None]:
    thread = threading.Thread(target=listener.serve_forever, args=(0.1,), name="listener", daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown()
        thread.join()
