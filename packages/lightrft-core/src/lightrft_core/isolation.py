"""A reward in worker processes that a time limit can end: whatever it does, the step goes on.

Rows that raise, hang, crash or eat memory are *unscored* with a reason; their neighbours are scored by a fresh worker.
Only a parent that kills its child is a time limit: alarms and threads cannot end a loop in C.
"""

import logging
import os
import select
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from lightrft_core.data import Score, ScoreRequest
from lightrft_core.descriptors import RewardComponent
from lightrft_core.errors import UserError
from lightrft_core.kinds import BY_NAME
from lightrft_core.protocols import Json
from lightrft_core.reward_wire import decode_score, encode_requests
from lightrft_core.sections import RewardSection
from lightrft_core.verdicts import unscored
from lightrft_core.worker_process import WorkerProcess, scrubbed

START_LIMIT = 300.0
"""Seconds that loading a reward may take; a model on a slow disk needs minutes."""
MAX_FAILURES_IN_A_ROW = 8
"""After so many hangs and crashes without one score between them, the other samples of the call are not tried."""
BATCH_LIMIT_FACTOR = 6
"""A whole batch may take this many times the limit of one sample before its rows are tried singly."""
ROWS_PER_JOB = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker holds: targets as `load_object` takes them, and the reward's validated options."""

    name: str
    target: str
    config_target: str
    config: RewardSection
    takes_batches: bool = False
    needs_media: bool = False

    @classmethod
    def of(cls, name: str, component: RewardComponent, config: RewardSection) -> "WorkerSpec":
        """The worker of a reward that a plugin offers, called `name` in this run."""
        base = BY_NAME["reward"].config_base
        return cls(
            name=name,
            target=component.target,
            config_target=component.config or f"{base.__module__}:{base.__qualname__}",
            config=config,
            takes_batches="batch" in component.provides,
            needs_media="media" in component.needs,
        )

    def hello(self) -> dict[str, Json]:
        """The first message to a worker."""
        memory_gb = self.config.memory_gb
        return {
            "target": self.target,
            "config_target": self.config_target,
            "config": self.config.model_dump(mode="json"),
            "memory_bytes": None if memory_gb is None else int(memory_gb * 2**30),
            "sys_path": [entry for entry in sys.path if entry],
        }


@dataclass(slots=True)
class _Job:
    """Rows (numbers of requests) still to be answered, singly or in one call."""

    rows: deque[int]
    is_batch: bool


@dataclass(slots=True)
class _Call:
    """One call of `score` in progress."""

    requests: Sequence[ScoreRequest]
    jobs: deque[_Job]
    scores: dict[int, Score] = field(default_factory=dict)
    failures_in_a_row: int = 0


@dataclass(slots=True)
class _Lane:
    """A place for one worker, and what it is doing until when."""

    worker: WorkerProcess | None = None
    job: _Job | None = None
    is_ready: bool = False
    deadline: float = 0.0


class IsolatedReward:
    """A `protocols.Reward` whose judging happens elsewhere. Workers start with the first call and stay."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self._lanes = [_Lane() for _ in range(spec.config.num_workers)]

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One verdict a request, in order. Raises `UserError` where the reward cannot even be loaded."""
        rows = range(len(requests))
        jobs = self._cut(rows) if not self.spec.takes_batches else [_Job(deque(rows), is_batch=True)] if rows else []
        call = _Call(requests, deque(jobs))
        try:
            while call.jobs or any(lane.job for lane in self._lanes):
                self._hand_out(call)
                self._wait()
                for lane in self._lanes:
                    self._attend(lane, call)
        except BaseException:
            self.close()  # answers still under way belong to nobody
            raise
        return [call.scores[row] for row in range(len(requests))]

    def start(self) -> None:
        """Load the reward now, so that a mistake in it is found before anything is generated."""
        call = _Call((), deque([_Job(deque(), is_batch=False)]))
        while call.jobs or any(lane.job for lane in self._lanes):
            self._hand_out(call)
            self._wait()
            self._attend(self._lanes[0], call)

    def close(self) -> None:
        """End the workers; a later call starts new ones."""
        for lane in self._lanes:
            self._end(lane)
            lane.job = None

    def _cut(self, rows: Sequence[int]) -> list[_Job]:
        """Jobs of a few rows each, enough for every lane."""
        size = max(1, min(ROWS_PER_JOB, -(-len(rows) // len(self._lanes))))
        return [_Job(deque(rows[start : start + size]), is_batch=False) for start in range(0, len(rows), size)]

    def _hand_out(self, call: _Call) -> None:
        for lane in self._lanes:
            if lane.job is not None or not call.jobs:
                continue
            lane.job = call.jobs.popleft()
            if lane.worker is not None and not lane.worker.is_alive():  # it died while nobody asked it anything
                self._end(lane)
            if lane.worker is None:
                lane.worker = WorkerProcess(scrubbed(os.environ, self.spec.config.env))
                lane.worker.send(self.spec.hello())
                lane.deadline = time.monotonic() + START_LIMIT
            if lane.job.rows:
                requests = [call.requests[row] for row in lane.job.rows]
                job = encode_requests(requests, with_media=self.spec.needs_media)
                lane.worker.send({**job, "batch": lane.job.is_batch})
            if lane.is_ready:
                self._wind(lane)

    def _wind(self, lane: _Lane) -> None:
        """Start the clock of the lane's next row, or of its batch; a job without rows is done."""
        if lane.job is None or not lane.job.rows:
            lane.job = None
            return
        lane.deadline = time.monotonic() + self._limit(lane.job)

    def _limit(self, job: _Job) -> float:
        return self.spec.config.timeout * (min(len(job.rows), BATCH_LIMIT_FACTOR) if job.is_batch else 1)

    def _wait(self) -> None:
        poller = select.poll()
        busy = [lane for lane in self._lanes if lane.job is not None and lane.worker is not None]
        if not busy:
            return
        for lane in busy:
            if lane.worker is not None:
                lane.worker.watch(poller)
        seconds = min(lane.deadline for lane in busy) - time.monotonic()
        poller.poll(max(0.0, seconds) * 1000 + 1)

    def _attend(self, lane: _Lane, call: _Call) -> None:
        if lane.worker is None or lane.job is None:
            return
        for answer in lane.worker.pump():
            self._take(lane, call, answer)
        if lane.job is None:
            self._relay(lane.worker)
        elif lane.worker.has_ended:
            self._fail(lane, call, lane.worker.how_it_ended())
        elif time.monotonic() > lane.deadline:
            self._fail(lane, call, f"took longer than {self._limit(lane.job):g} s (its `timeout`)")

    def _take(self, lane: _Lane, call: _Call, answer: Json) -> None:
        if "refused" in answer:
            what, where, hint = answer["refused"]
            raise UserError(what, where=where or f"reward {self.spec.name!r}", hint=hint)
        if "ready" in answer:
            lane.is_ready = True
        elif "spoilt" in answer and lane.job is not None:
            self._singly(lane.job, call, answer["spoilt"])
            lane.job = None
        elif lane.job is not None:
            for item in answer["scores"]:
                call.scores[lane.job.rows.popleft()] = decode_score(item)
            call.failures_in_a_row = 0
        self._wind(lane)

    def _fail(self, lane: _Lane, call: _Call, reason: str) -> None:
        """The lane's worker hung or died: its present row is unscored, the rest goes to a new worker."""
        job, lane.job = lane.job, None
        was_ready = lane.is_ready
        self._end(lane)
        if not was_ready:
            raise UserError(f"its worker {reason} while it was loading", where=f"reward {self.spec.name!r}")
        if job is None:
            return
        if job.is_batch and len(job.rows) > 1:
            self._singly(job, call, reason)
            return
        call.scores[job.rows.popleft()] = unscored(reason)
        call.failures_in_a_row += 1
        if job.rows:
            call.jobs.appendleft(job)
        if call.failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            self._give_up(call, reason)

    def _singly(self, job: _Job, call: _Call, reason: str) -> None:
        """Try the rows of a batch one by one, so that the bad one is named."""
        if len(job.rows) == 1:
            call.scores[job.rows[0]] = unscored(reason)
            return
        logger.warning("reward %r: a batch of %d %s; trying them singly", self.spec.name, len(job.rows), reason)
        call.jobs.extend(self._cut(list(job.rows)))

    def _give_up(self, call: _Call, reason: str) -> None:
        for job in call.jobs:
            for row in job.rows:
                call.scores[row] = unscored(f"not tried after {call.failures_in_a_row} failures in a row: {reason}")
        call.jobs.clear()

    def _relay(self, worker: WorkerProcess) -> None:
        for text in worker.printed:
            logger.info("reward %r prints: %s", self.spec.name, text)
        worker.printed.clear()

    def _end(self, lane: _Lane) -> None:
        if lane.worker is not None:
            lane.worker.end()
            self._relay(lane.worker)
        lane.worker, lane.is_ready = None, False
