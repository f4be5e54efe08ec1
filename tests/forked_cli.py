"""Forks `lightrft` for every request on stdin: a process of its own in all but the seconds that imports take.

A request is a line of JSON, see `Request`; the answer, on stdout, is the exit code, as `subprocess` has it.
"""

import gc
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from lightrft_core.cli.main import run

PRELOADED = (
    "lightrft_core.session",
    "lightrft_engines.embedded",
    "lightrft_engines.text",
    "lightrft_engines.training.single",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "transformers.models.qwen2.modeling_qwen2",
)


@dataclass(frozen=True)
class Request:
    """A command line; `out` and `err` are files, `timeout` is in seconds and ends it by SIGALRM."""

    words: Sequence[str]
    cwd: str
    env: dict[str, str]
    out: str
    err: str
    timeout: int


def serve() -> Sequence[str] | None:
    """Answer requests until there are none; in each fork, return its words."""
    for line in sys.stdin:
        request = Request(**json.loads(line))
        pid = os.fork()
        if not pid:
            become(request)
            return request.words
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def become(request: Request) -> None:
    """What a start of Python would have set up."""
    signal.alarm(request.timeout)
    for number, path in enumerate((os.devnull, request.out, request.err)):
        opened = os.open(path, os.O_RDWR)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(request.env)
    os.chdir(request.cwd)
    given = request.env.get("PYTHONPATH")
    sys.path[0:1] = [request.cwd, *(given.split(os.pathsep) if given else ())]
    sys.argv[1:] = request.words


def main() -> None:
    """Import, then fork."""
    for name in PRELOADED:
        import_module(name)
    gc.collect()
    gc.freeze()  # else each fork, at its end, goes through all that was imported: a second
    words = serve()
    if words is not None:
        sys.exit(run(words))


if __name__ == "__main__":
    main()
