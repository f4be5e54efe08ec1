"""Saving a run: while the loop waits, or from a copy in memory while it goes on.

At most one save is in flight. What it raises is raised in the loop, on every rank at the same place.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Final, cast

from lightrft_core.abilities import StagingStrategy
from lightrft_core.checkpoints import Checkpoints, Write
from lightrft_core.contents import EXPORT
from lightrft_core.protocols import Json, Strategy
from lightrft_core.sections import CheckpointSection

if TYPE_CHECKING:
    from lightrft_core.stopping import Stopper

logger = logging.getLogger(__name__)
_WHOLE: Final = 6  # times as much as weights alone is what a stop saves: 12 bytes per parameter for 2 of bf16
Tell = Callable[[int, Path], None]


@dataclass(frozen=True, slots=True)
class _Flight:
    """A save that another thread does; `blocked` are the seconds for which the loop stood still for it."""

    step: int
    begin: float
    blocked: float
    published: Future[tuple[Path, float]]


def is_due(section: CheckpointSection, step: int, prompts_per_step: int, num_prompts: int) -> bool:
    """Whether this step of a run saves, its last one aside. A pass ends with the step that draws its last prompt.

    That follows from the step's number alone, so a resumed run needs no count.
    """
    by_step = section.every is not None and step % section.every == 0
    if by_step or section.every_episodes is None:
        return by_step
    drawn, stretch = step * prompts_per_step, section.every_episodes * num_prompts
    return drawn // stretch > (drawn - prompts_per_step) // stretch


class Saver:
    """Saves a strategy with a run's state. `tell` is called for each published checkpoint, in the loop, on every rank.

    `saved_step` is the step that needs no saving any more: it is on the disk or in flight.
    """

    def __init__(
        self, checkpoints: Checkpoints, strategy: Strategy, stopper: "Stopper", section: CheckpointSection, tell: Tell
    ) -> None:
        self._checkpoints, self._strategy, self._stopper = checkpoints, strategy, stopper
        self._section, self._tell = section, tell
        self._flight: _Flight | None = None
        self.saved_step: int | None = None

    def save(self, step: int, state: Callable[[], Json], *, resumable: bool = False) -> None:
        """Return when a checkpoint of the step is on the disk; all ranks call it together, as all of these.

        With `resumable` a run can go on from it, whatever the section says.
        """
        self.finish()
        whole = resumable or self._section.resumable
        if self.saved_step == step and whole == self._section.resumable:
            return
        begin, strategy = time.monotonic(), self._strategy
        writes: list[Write] = [strategy.save] if whole else []
        if self._section.export or not whole:
            writes.append(lambda folder: strategy.export(folder / EXPORT))
        path = self._checkpoints.save(step, state() if whole else None, writes[0], strategy.world, also=writes[1:])
        seconds = time.monotonic() - begin
        self.saved_step = step
        self._published(step, path, seconds, seconds)

    def note_evaluation(self) -> None:
        """What is saved lacks it, unless that is weights alone."""
        if self._section.resumable:
            self.saved_step = None

    def begin(self, step: int, state: Callable[[], Json]) -> None:
        """Where the run asks for it, take a copy and publish it while training goes on; else as `save`."""
        if not self._section.background or self.saved_step == step:
            self.save(step, state)
            return
        asked = time.monotonic()
        self.finish()
        begin = time.monotonic()
        strategy = cast(StagingStrategy, self._strategy)  # it provides `background_save`, or was refused
        self._stopper.note_save_begun()
        whole = self._section.resumable
        export = EXPORT if self._section.export or not whole else None
        world, write = strategy.beside, strategy.stage(export=export, state=whole)
        kept = state() if whole else None

        def publish() -> tuple[Path, float]:
            return self._checkpoints.save(step, kept, write, world), time.monotonic()

        self.saved_step = step
        self._flight = _Flight(step, begin, time.monotonic() - asked, _in_thread(publish))

    def collect(self) -> None:
        """Take notice of a save in flight once every rank is done with it. Raises what it raised."""
        flight, world = self._flight, self._strategy.world
        if flight is not None and world.sum([float(flight.published.done())])[0] == world.size:
            self.finish()

    def finish(self) -> None:
        """Wait for the save in flight, if there is one. Raises what it raised."""
        flight, self._flight = self._flight, None
        if flight is not None:
            path, end = flight.published.result()
            self._published(flight.step, path, end - flight.begin, flight.blocked)

    def close(self) -> None:
        """The same at the end of a run, which may have failed by itself: an error here must not hide that one."""
        try:
            self.finish()
        except Exception as error:  # the run is over, and its own error is on the way up
            logger.error("a checkpoint was not written: %s", error)

    def _published(self, step: int, path: Path, seconds: float, blocked: float) -> None:
        self._stopper.note_save(seconds if self._section.resumable else seconds * _WHOLE)
        logger.info("saved %s in %.1f s; training waited %.1f s", path, seconds, blocked)
        self._tell(step, path)


def _in_thread(work: Callable[[], tuple[Path, float]]) -> Future[tuple[Path, float]]:
    """A daemon: a process that ends at a second signal must not wait for it."""
    future: Future[tuple[Path, float]] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # whatever it is, it is raised in the loop
            future.set_exception(error)

    Thread(target=run, name="lightrft-save", daemon=True).start()
    return future
