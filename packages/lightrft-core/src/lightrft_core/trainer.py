"""One run: evaluate, then step after step draw, sample, score, weigh, train and sync. Every rank runs this same loop.

The step reads from top to bottom. A part that the run does not name is an empty list or an identity, never an `if` on
its name. A stop request is honoured between phases: before training begins the step is given up and its draws undone.
"""

import copy
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from lightrft_core.data import Batch, Group, Prompt, StepReport, StepStats, seed_for
from lightrft_core.errors import RunFailed, StepRefused, StoppedEarly, UserError
from lightrft_core.gap import Gap, merged
from lightrft_core.measures import add_pairs, means, rollout_pairs, training_metrics, version_pairs
from lightrft_core.parts import Parts, Plan
from lightrft_core.phases import GIB, Phases, PhaseTable, largest
from lightrft_core.protocols import Json, Stateful
from lightrft_core.saving import Saver, is_due
from lightrft_core.watch import Watch

logger = logging.getLogger(__name__)


class StepGivenUp(Exception):
    """A stop was requested before this step changed any weight."""


class Trainer:
    """The loop over steps, with its state: step, version, streaks, and whatever its parts keep."""

    def __init__(self, parts: Parts, plan: Plan) -> None:
        self.parts, self.plan, self.world = parts, plan, parts.strategy.world
        self.step_done = 0
        self._saver = Saver(parts.checkpoints, parts.strategy, parts.stopper, plan.checkpoint, self._tell_saved)
        self._watch = Watch(plan.run, plan.optim, plan.engine_gap)
        self.phases = PhaseTable()
        self.evaluations: dict[int, Mapping[str, float]] = {}

    def run(self) -> None:
        """Go to the last step. Raises `StoppedEarly` after a requested stop was saved, `RunFailed` where it cannot."""
        plan = self.plan
        self.parts.rest.sleep()
        try:
            if self.step_done == 0 and plan.evaluation.at_start and 0 not in self.evaluations:
                self.evaluate()
                self._stop_point()
            while self.step_done < plan.num_steps:
                self._one_round()
            if plan.evaluation.at_end and self.step_done not in self.evaluations:
                self.save()  # an evaluation that fails must not cost the last steps
                self.evaluate()
            self.save()
            self.phases.peaks = largest(*self.world.gather(self.phases.peaks))
        except StepGivenUp:
            self.save(resumable=True)
            raise StoppedEarly(f"stopped after step {self.step_done} ({self._stop_reason()})") from None
        except StepRefused:
            self.save(resumable=True)
            raise

    def _one_round(self) -> None:
        before, start = self.state(), time.monotonic()
        try:
            report = self.step()
        except (StepGivenUp, StepRefused):
            self._restore(before)
            raise
        self._tell(report)
        with self._phase("save"):
            self._saver.collect()
        plan, done = self.plan, self.step_done
        last = done == plan.num_steps
        if plan.evaluation.every and done % plan.evaluation.every == 0 and not (last and plan.evaluation.at_end):
            self.evaluate()
        self.parts.stopper.note_step(time.monotonic() - start)
        if not last and is_due(plan.checkpoint, done, plan.prompts_per_step, len(self.parts.task)):
            with self._phase("save"):
                self._saver.begin(done, self.state)
        if not last:
            self._stop_point()

    def step(self) -> StepReport:
        """One step, a straight line."""
        parts, world = self.parts, self.world
        clock = Phases(partial(parts.note, self.step_done + 1), parts.meter)
        with clock("generate"):
            groups = self._sample(parts.task.draw(self.plan.prompts_per_step))
        self._stop_point()
        with clock("score"):
            self._watch.scores(parts.rewards.score(groups))
            groups, metrics = parts.filters.keep(groups, lambda missing, attempt: self._refill(missing, attempt, clock))
            shaped = [shaper.apply(groups, world) for shaper in parts.shapers]
            pairs = rollout_pairs(groups)
            add_pairs(pairs, version_pairs(groups, self.step_done))
            measured = means(pairs, world)
        self._stop_point()
        with clock("prepare"):
            parts.engine.sleep()
            batch = parts.model.collate(groups)
            parts.strategy.fill(batch, parts.needs)
            gap = self._gauge(batch)  # before a correction or a selector leaves tokens out
            kl = parts.kl.penalise(batch, world) if parts.kl is not None and not parts.kl.in_loss else {}
            advantages = parts.advantage(batch, world)
            batch.advantages_BT, batch.returns_BT = advantages.advantages_BT, advantages.returns_BT
            corrected = self._correct(batch)
        self._stop_point()
        with clock("train"):
            parts.rest.wake()
            stats = self._train(batch)
            parts.rest.sleep()
        with clock("sync"):
            self.step_done += 1
            self.sync()
        trained = {**training_metrics(stats), **kl, **self._judge(gap or merged(item.gap for item in stats))}
        self._steer_kl(trained, len(batch))
        tokens, _ = pairs.get("completion/length", (0.0, 0.0))  # a rank may be left without groups
        with clock("store"):
            self._store(groups, "train")
        return self._report(clock, tokens, groups, measured, *shaped, metrics, corrected, trained)

    def _sample(self, prompts: Sequence[Prompt]) -> list[Group]:
        share = prompts[self.world.rank :: self.world.size]
        return self.parts.sampler.sample(self.parts.engine, share, step=self.step_done + 1)

    def _refill(self, missing: int, attempt: int, clock: Phases) -> list[Group]:
        """Fresh, scored groups for this rank; all ranks draw the prompts of all and take their own."""
        every = [int(item) for item in self.world.gather(missing)]
        start = sum(every[: self.world.rank])
        with clock("generate"):
            prompts = self.parts.task.draw(sum(every))[start : start + missing]
            groups = self.parts.sampler.sample(self.parts.engine, prompts, step=self.step_done + 1, attempt=attempt)
        self.parts.rewards.score(groups)
        return groups

    def _correct(self, batch: Batch) -> Mapping[str, float]:
        corrected = self.parts.correction(batch, self.world)
        batch.weights_BT = corrected.weights_BT
        if corrected.mask_BT is not None:
            batch.mask_BT = batch.mask_BT & corrected.mask_BT
        for select in self.parts.selectors:
            batch.mask_BT = batch.mask_BT & select(batch, self.world)
        return corrected.metrics

    def _train(self, batch: Batch) -> list[StepStats]:
        """Optimizer steps over the batch. Log-probabilities of later minibatches are taken before the first changes."""
        parts, epochs = self.parts, self.plan.optim.epochs
        kl_coef = parts.kl.coef if parts.kl is not None and parts.kl.in_loss else 0.0
        objective = replace(parts.objective, kl_coef=kl_coef)
        if epochs > 1 and batch.old_logprobs_BT is None:
            parts.strategy.fill(batch, frozenset({"old_logprobs"}))
        cuts = list(batch.minibatches(self.plan.minibatches, epochs, seed_for(self.plan.run.seed, self.step_done)))
        for cut in cuts[1:]:
            if cut.old_logprobs_BT is None:
                parts.strategy.fill(cut, frozenset({"old_logprobs"}))
            self._gauge(cut)
        max_gap = self.plan.engine_gap.stop_above if cuts[0].old_logprobs_BT is None else None
        stats = []
        for cut in cuts:
            parts.before_update()
            stats.append(parts.strategy.step(cut, replace(objective, max_gap=max_gap)))
            if max_gap is not None:  # the first update alone is the first to see how far off the engine is
                self._watch.limit(stats[-1].gap, self.step_done + 1)
                max_gap = None
            self._watch.update(stats[-1], self.step_done + 1)
        return stats

    def _gauge(self, batch: Batch) -> Gap | None:
        """The gap to the engine, where log-probabilities are known before any update. Raises `GapTooLarge`."""
        gap = self.parts.gauge(batch)
        self._watch.limit(gap, self.step_done + 1)
        return gap

    def _judge(self, gap: Gap | None) -> Mapping[str, float]:
        """The figures of a step's gap; warns where it is large."""
        self._watch.gap(gap, self.step_done)
        return {} if gap is None else gap.metrics()

    def sync(self) -> None:
        """Serve the trained weights, and prove it: a sampled fingerprint of both sides must be equal."""
        parts = self.parts
        parts.engine.update_weights(parts.strategy.weights, self.step_done)
        parts.engine.wake()
        trained = parts.strategy.fingerprint()
        served = parts.engine.fingerprint(list(trained))
        wrong = [name for name, value in trained.items() if served.get(name) != value]
        if wrong:
            raise RunFailed(
                f"after the sync of step {self.step_done} the engine serves other weights than trained: {wrong[0]}",
                where="engine",
                hint="Nothing was saved since the last checkpoint; this is a fault of the engine plugin.",
            )

    def evaluate(self) -> Mapping[str, float]:
        """Measure on the whole evaluation set, and tell everybody."""
        if self.parts.evaluator is None:
            return {}
        with self._phase("evaluate"):
            metrics, groups = self.parts.evaluator.measure(self.step_done)
        self.evaluations[self.step_done] = metrics
        self._saver.note_evaluation()
        logger.info("evaluation at step %d: %s", self.step_done, metrics)
        for tracker in self.parts.trackers:
            tracker.log_evaluation(self.step_done, metrics)
        for callback in self.parts.callbacks:
            callback.on_evaluation(self.step_done, metrics)
        self._store(groups, "eval")
        return metrics

    def save(self, *, resumable: bool = False) -> None:
        """Have a checkpoint of this step on the disk; `resumable` where the run is to go on from it in any case."""
        with self._phase("save"):
            self._saver.save(self.step_done, self.state, resumable=resumable)

    def close(self) -> None:
        """Let a save in flight end, however the run ended."""
        self._saver.close()

    def state(self) -> dict[str, Json]:
        """Everything beside the strategy's files that a resumed run needs, as JSON; a copy."""
        parts = {name: part.state_dict() for name, part in self._stateful().items()}
        evaluations = {str(step): dict(metrics) for step, metrics in self.evaluations.items()}
        return copy.deepcopy({"step": self.step_done, "parts": parts, "evaluations": evaluations})

    def resume(self, state: Mapping[str, Json]) -> None:
        """Go on from a checkpoint whose files the strategy has loaded."""
        self._restore(state)
        self._saver.saved_step = self.step_done
        self.sync()

    def _restore(self, state: Mapping[str, Json]) -> None:
        self.step_done = state["step"]
        self.evaluations = {int(step): metrics for step, metrics in state["evaluations"].items()}
        for name, part in self._stateful().items():
            if name not in state["parts"]:
                hint = "Resume with the parts that the run was started with."
                raise UserError(f"the checkpoint holds nothing of {name}, which keeps a state.", hint=hint)
            part.load_state_dict(state["parts"][name])

    def _stateful(self) -> dict[str, Stateful]:
        parts = self.parts
        named: dict[str, object] = {"task": parts.task, "sampler": parts.sampler, "kl": parts.kl, "watch": self._watch}
        named |= {f"shaper{index}": shaper for index, shaper in enumerate(parts.shapers)}
        named["before_update"] = parts.before_update
        named |= {f"callback{index}": callback for index, callback in enumerate(parts.callbacks)}
        return {name: part for name, part in named.items() if isinstance(part, Stateful)}

    def _report(self, clock: Phases, tokens: float, groups: list[Group], *metrics: Mapping[str, float]) -> StepReport:
        named = {name: value for part in metrics for name, value in part.items()}
        busy = sum(clock.seconds.values())
        ranks = self.world.gather([tokens, clock.peaks, self.phases.peaks])
        peaks = largest(*(rank[1] for rank in ranks))
        self.phases.add(clock.seconds, largest(peaks, *(rank[2] for rank in ranks)))
        named["throughput/tokens_per_s"] = sum(rank[0] for rank in ranks) / max(busy, 1e-9)
        if self.parts.kl is not None:
            named["train/kl_coef"] = self.parts.kl.coef
        memory = {phase: peak / GIB for phase, peak in peaks.items()}
        return StepReport(self.step_done, named, dict(clock.seconds), groups, memory)

    def _tell(self, report: StepReport) -> None:
        with self._phase("tell"):
            for tracker in self.parts.trackers:
                tracker.log(report)
            for callback in self.parts.callbacks:
                callback.on_step(report)

    def _tell_saved(self, step: int, path: Path) -> None:
        for callback in self.parts.callbacks:
            callback.on_save(step, path)

    def _store(self, groups: Sequence[Group], phase: Literal["train", "eval"]) -> None:
        if self.parts.store is not None:
            self.parts.store.add(self.step_done, groups, phase=phase)

    def _steer_kl(self, trained: Mapping[str, float], num_rows: int) -> None:
        if self.parts.kl is not None:
            self.parts.kl.end_step(self.step_done, trained.get("train/kl"), int(self.world.sum([num_rows])[0]))

    def _stop_point(self) -> None:
        """Agree over all ranks whether to stop here."""
        with self._phase("agree"):
            is_asked = self.world.sum([float(self.parts.stopper.requested is not None)])[0] > 0
        if is_asked:
            raise StepGivenUp

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """A part of the run that no step's times count, for the watchdog and the table of phases."""
        clock = Phases(partial(self.parts.note, self.step_done), self.parts.meter)
        try:
            with clock(name):
                yield
        finally:
            self.phases.add(clock.seconds, clock.peaks)

    def _stop_reason(self) -> str:
        reasons = [reason for reason in self.world.gather(self.parts.stopper.requested) if reason]
        return str(reasons[0]) if reasons else "requested"
