"""SGLang's Engine in this process, on a thread of its own, so that it leaves the trainer's process as it found it.

On the main thread SGLang takes over the handlers of signals and ends the whole process when one of its own fails; and
ending it kills every child of this process. Here its processes are watched, a lost one is a named failure, and only
they are ended.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError, wait
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from lightrft_core.errors import LightRFTError, RunFailed

from lightrft_engines.serving.http import AGAIN
from lightrft_engines.serving.process import plain_environment
from lightrft_engines.serving.undisturbed import undisturbed
from lightrft_engines.sglang_engine.arguments import Arguments, prepare
from lightrft_engines.sglang_engine.faults import explained
from lightrft_engines.sglang_engine.leftovers import remove_loads

if TYPE_CHECKING:
    from sglang.srt.entrypoints.engine import Engine

Result = TypeVar("Result")
LOOK = 0.5  # seconds between looks at SGLang's processes while one waits for them
LAST_WORDS = 2.0  # seconds in which what failed may still tell more
REQUESTS = {
    "begin_weight_update": "BeginWeightUpdateReqInput",
    "end_weight_update": "EndWeightUpdateReqInput",
    "update_weights_from_tensor": "UpdateWeightsFromTensorReqInput",
    "update_weights_from_distributed": "UpdateWeightsFromDistributedReqInput",
    "init_weights_update_group": "InitWeightsUpdateGroupReqInput",
    "get_weights_by_name": "GetWeightsByNameReqInput",
    "release_memory_occupation": "ReleaseMemoryOccupationReqInput",
    "resume_memory_occupation": "ResumeMemoryOccupationReqInput",
}
"""Routes of the server and the requests that they take; SGLang's tokenizer manager has a method of each name."""


class Inside:
    """A started Engine."""

    def __init__(self, arguments: Arguments, log_path: Path) -> None:
        self._log_path = log_path
        self._log_start = log_path.stat().st_size if log_path.exists() else 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sglang")
        self._engine: Engine | None = None
        self._children: list[multiprocessing.process.BaseProcess] = []
        self._failed = threading.Event()
        _on_sigquit(self._failed.set)
        before = set(multiprocessing.active_children())
        try:
            self._engine = self._on_thread(lambda: _start(arguments, log_path), "start")
        except BaseException:
            self._end_since(before)
            raise
        self._children = [one for one in multiprocessing.active_children() if one not in before]

    def call(self, route: str, body: Mapping[str, Any]) -> Any:  # Any: JSON, as the server's route takes and gives it
        """What the server's route of that name does."""
        return self._on_thread(lambda: self._ask(route, body), "answer")

    def generate(
        self, requests: Sequence[Mapping[str, Any]], limit: float | None
    ) -> Sequence[Mapping[str, Any]]:  # Any: JSON
        """Answers in order; past `limit` seconds all of them end as they are."""
        fields = _columns(requests)

        def write() -> Any:  # Any: SGLang's answers
            engine = self._require()
            with _stopped_after(limit, engine):
                return engine.generate(**fields)

        answers: Sequence[Mapping[str, Any]] = self._on_thread(write, "generate")
        return answers

    def stream(
        self, requests: Sequence[Mapping[str, Any]], limit: float | None
    ) -> Iterator[Mapping[str, Any]]:  # Any: JSON
        """Each request's answer so far, whenever there is more of one; its `index` says of which."""
        fields = _columns(requests) | {"rid": [uuid.uuid4().hex for _ in requests], "stream": True}
        engine = self._require()

        def do(step: Awaitable[Result]) -> Callable[[], Result]:
            return lambda: engine.loop.run_until_complete(step)

        answers = self._on_thread(do(engine.async_generate(**fields)), "generate")
        try:
            with _stopped_after(limit, engine, fields["rid"]):
                while answer := self._on_thread(do(anext(answers, None)), "generate"):
                    yield answer
        finally:
            self._on_thread(do(answers.aclose()), "generate")

    def close(self) -> None:
        """End SGLang's processes, and nothing else; what they leave on the machine goes too."""
        if self._engine is not None:
            with contextlib.suppress(LightRFTError):
                self._on_thread(lambda: _let_go(self._require()), "end")
            remove_loads(self._engine.tokenizer_manager)
            self._engine = None
        self._end()

    def _end_since(self, before: "set[multiprocessing.process.BaseProcess]") -> None:
        """After a start that failed."""
        self._children = [one for one in multiprocessing.active_children() if one not in before]
        self._end()

    def _end(self) -> None:
        for child in self._children:
            child.kill()
        for child in self._children:
            child.join()
        self._children = []
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _ask(self, route: str, body: Mapping[str, Any]) -> Any:  # Any: JSON
        from sglang.srt.managers import io_struct

        engine = self._require()
        request = getattr(io_struct, REQUESTS[route])(**body)
        told = engine.loop.run_until_complete(getattr(engine.tokenizer_manager, route)(request, None))
        if isinstance(told, tuple) and not told[0]:
            raise explained(str(told[1]), "take weights")
        return told

    def _on_thread(self, do: Callable[[], Result], doing: str) -> Result:
        """Do it there; `RunFailed` where one of SGLang's processes ends meanwhile."""
        future = self._thread.submit(do)
        while not _is_done(future):
            if self._failed.is_set() or any(not child.is_alive() for child in self._children):
                wait([future], LAST_WORDS)
                if not future.done():
                    self._give_up()
                    raise self._lost(doing)
        try:
            return future.result()
        except asyncio.CancelledError:
            raise self._lost(doing) from None
        except (RuntimeError, ValueError, AssertionError, OSError, ImportError) as error:
            raise explained(f"{self._said()}\n{type(error).__name__}: {error}", doing) from error

    def _give_up(self) -> None:
        """Let the thread stop waiting for processes that are gone, or this process could not end."""
        if self._engine is not None:
            loop = self._engine.loop
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])

    def _lost(self, doing: str) -> LightRFTError:
        codes = ", ".join(str(child.exitcode) for child in self._children if not child.is_alive()) or "unknown"
        failure = explained(self._said() or f"status {codes}", doing)
        if self._engine is None or failure.where != "engine":
            return failure
        return RunFailed(
            f"a process of the engine ended with status {codes}: {failure.what}",
            where="engine",
            hint=f"Its log is {self._log_path.name} in the run's folder.",
        )

    def _said(self) -> str:
        if not self._log_path.exists():
            return ""
        return self._log_path.read_bytes()[self._log_start :].decode(errors="replace")

    def _require(self) -> "Engine":
        if self._engine is None:
            raise RuntimeError("the engine is closed")
        return self._engine


def _columns(requests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:  # Any: JSON
    """A batch in SGLang's form."""
    return {name: [one[name] for one in requests] for name in ("input_ids", "sampling_params", "return_logprob")}


def _is_done(future: "Future[Result]") -> bool:
    try:
        future.exception(LOOK)
    except TimeoutError:
        return False
    return True


def _start(arguments: Arguments, log_path: Path) -> "Engine":
    """SGLang's Engine with our schedulers; logging, variables and the way to start processes stay the trainer's."""
    import atexit

    with undisturbed(), _as_it_was(log_path):
        prepare(arguments["tp_size"])
        from sglang.srt.entrypoints.engine import Engine

        from lightrft_engines.sglang_engine.scheduler import run, write_texts

        class Ours(Engine):  # type: ignore[misc]  # SGLang is not installed where types are checked
            run_scheduler_process_func = staticmethod(run)
            run_detokenizer_process_func = staticmethod(write_texts)

        engine: Engine = Ours(**arguments)
    atexit.unregister(engine.shutdown)  # it kills every child of this process
    return engine


@contextlib.contextmanager
def _stopped_after(limit: float | None, engine: "Engine", names: Sequence[str] | None = None) -> Iterator[None]:
    """Past `limit` seconds requests end as they are; told again each second, as some may still be on their way."""
    timers: list[asyncio.TimerHandle] = []

    def stop() -> None:
        for name in names or [""]:
            engine.tokenizer_manager.abort_request(name, abort_all=names is None)
        timers.append(engine.loop.call_later(AGAIN, stop))

    if limit is not None:
        timers.append(engine.loop.call_later(limit, stop))
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def _let_go(engine: "Engine") -> None:
    """Stop what of it runs in this process."""
    engine.tokenizer_manager._subprocess_watchdog.stop()
    engine.send_to_rpc.close(linger=0)
    for task in asyncio.all_tasks(engine.loop):
        task.cancel()
    engine.loop.run_until_complete(asyncio.sleep(0))
    engine.loop.close()


@contextlib.contextmanager
def _as_it_was(log_path: Path) -> Iterator[None]:
    """SGLang's processes inherit what is set here, and write to the log; this process gets back what it had."""
    root = logging.getLogger()
    handlers, level, method = root.handlers[:], root.level, multiprocessing.get_start_method(allow_none=True)
    environment, outputs = dict(os.environ), (os.dup(1), os.dup(2))
    root.handlers = []  # SGLang closes those that it finds
    for name in environment.keys() - plain_environment().keys():
        del os.environ[name]
    with log_path.open("ab") as output:
        for place in (1, 2):
            os.dup2(output.fileno(), place)
    try:
        yield
    finally:
        for place, kept in zip((1, 2), outputs, strict=True):
            os.dup2(kept, place)
            os.close(kept)
        os.environ.clear()
        os.environ.update(environment)
        multiprocessing.set_start_method(method, force=True)
        root.handlers, root.level = handlers, level


def _on_sigquit(do: Callable[[], None]) -> None:
    """SGLang's processes send SIGQUIT when they fail, and wait to be ended; its default would end this one."""
    if threading.current_thread() is not threading.main_thread():
        return
    former = signal.getsignal(signal.SIGQUIT)

    def handle(number: int, frame: FrameType | None) -> None:
        do()
        if callable(former):
            former(number, frame)

    signal.signal(signal.SIGQUIT, handle)
