"""A run from its folder to its exit: build, self-test or resume, train, and leave a status whatever happens."""

import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lightrft_core import failures, launch, manifest
from lightrft_core.assembly import Core, build_core, build_selftest, build_trainer
from lightrft_core.checkpoints import Checkpoints
from lightrft_core.contents import Checkpoint, step_of
from lightrft_core.curves import Curves
from lightrft_core.data import Group
from lightrft_core.descriptors import Algorithm
from lightrft_core.drawing import sample_groups, sampling_of
from lightrft_core.errors import ExitCode, LightRFTError, RankLost, RunFailed, StoppedEarly, UserError
from lightrft_core.failures import noted
from lightrft_core.phase_report import PhaseReport
from lightrft_core.plugins import Plugins
from lightrft_core.protocols import RunStatus
from lightrft_core.rank_output import Say, to_terminal
from lightrft_core.resumption import history, told, unresumable
from lightrft_core.rundir import RunDir, truncate_metrics
from lightrft_core.runfile import RunFile
from lightrft_core.selftest import describe
from lightrft_core.stopping import Stopper, parse_duration
from lightrft_core.trainer import Trainer
from lightrft_core.watchdog import Watchdog

logger = logging.getLogger(__name__)
LAUNCHER_GRACE = 5.0  # seconds in which a launcher may repeat the signal that the terminal sent already


@dataclass(frozen=True)
class Session:
    """One `lightrft train` on this rank. `say` prints on rank 0 only, `tell` on every rank."""

    run_file: RunFile
    plugins: Plugins
    run_dir: RunDir
    say: Say
    tell: Say = to_terminal

    def train(self, *, resume: bool) -> Trainer:
        """Run to the end. Raises what ended it early, after the status file says so."""
        with self._stopper() as stopper, self._status(), self._log_file(), self._watchdog() as watchdog:
            with noted():
                core = build_core(self.run_file, self.plugins, self.run_dir, launch.world_size())
            with closing(core):
                trainer = build_trainer(core, self.run_file, self.run_dir, stopper)
                trainer.parts.note = watchdog.note
                with _told(trainer), noted():
                    core.rewards.start()
                    core.rewards.check(trainer.parts.task.everything())
                    checkpoint = self._resumed_from(trainer) if resume else None
                    if launch.rank() == 0:
                        self._describe(core, checkpoint)
                        curves = Curves(self.run_dir, self.run_file.plots.every)
                        phases = PhaseReport(trainer.phases, self.say)
                        trainer.parts.callbacks = [*trainer.parts.callbacks, curves, phases]
                    self._start(core, trainer, checkpoint, resume)
                    trainer.run()
                return trainer

    def _stopper(self) -> Stopper:
        limit = self.run_file.run.max_time
        grace = LAUNCHER_GRACE if launch.is_launched() else 0.0
        return Stopper(parse_duration(limit) if limit else None, grace, stop_file=self.run_dir.stop_file)

    def _watchdog(self) -> Watchdog:
        run = self.run_file.run
        limit = parse_duration(run.watchdog, "run.watchdog") if run.watchdog else None
        end = self._end_stalled if run.watchdog_action == "stop" else None
        return Watchdog(limit, self.run_dir.logs, launch.rank(), self.tell, end)

    def _end_stalled(self, what: str) -> None:
        """End the process while its main thread hangs."""
        error = RunFailed(what, where="run.watchdog", hint=f"The stacks of all ranks are in {self.run_dir.logs}.")
        failures.note(error)
        if self.run_dir.read_status().state == "running":
            self.run_dir.write_status("failed", str(error), int(error.exit_code))
        if not failures.is_reported():
            self.tell(f"error: {error}")
        os._exit(int(error.exit_code))

    def _start(self, core: Core, trainer: Trainer, checkpoint: Checkpoint | None, resume: bool) -> None:
        if checkpoint is not None:
            self._resume(core, trainer, checkpoint)
            return
        self._forget_after(-1, trainer)
        if resume:
            self.say("no checkpoint was saved yet: starting from step 0")
        if self.run_file.selftest.enabled:
            findings = build_selftest(core, self.run_file).run(self._selftest_groups(core, trainer))
            if core.world.rank == 0:
                describe(findings, self.say)

    def _describe(self, core: Core, checkpoint: Checkpoint | None) -> None:
        tasks = {"task": core.task, "evaluation": core.evaluation_task}
        data = {role: task.fingerprint() for role, task in tasks.items() if task is not None}
        name = self.run_file.algorithm
        algorithm = self.plugins.find("algorithm", name, where="algorithm") if name is not None else None
        described = manifest.describe(
            self.run_file,
            self.plugins.rows,
            data=data,
            world_size=core.world.size,
            folder=Path(),
            algorithm=cast(Algorithm | None, algorithm),
        )
        described["origins"] = manifest.origins(self.run_file, self.run_dir)
        if checkpoint is not None:
            described["resumed"] = history(self.run_dir.read_manifest(), checkpoint.step, core.world.size)
        self.run_dir.write_manifest(described)

    def _resumed_from(self, trainer: Trainer) -> Checkpoint | None:
        checkpoints = trainer.parts.checkpoints
        found = checkpoints.newest(trainer.world, resumable=True)
        if alone := [path for path in checkpoints.weights_alone() if found is None or step_of(path) > found.step]:
            if found is None:
                raise unresumable(alone[0])
            self.say(f"{alone[0]} is newer, and holds the policy's weights alone")
        return found

    def _resume(self, core: Core, trainer: Trainer, checkpoint: Checkpoint) -> None:
        core.strategy.load(checkpoint.path)
        trainer.parts.checkpoints.tidy(core.world)
        trainer.resume(checkpoint.state)
        self._forget_after(checkpoint.step, trainer)
        if core.world.rank == 0:
            self.say(f"resumed from {checkpoint.path} (step {checkpoint.step} of {core.num_steps})")
            if changed := told(self.run_dir.read_manifest()["resumed"][-1]["changed"]):
                self.say(f"changed since then: {changed}")
                logger.info("resumed at step %d with changes: %s", checkpoint.step, changed)

    def _forget_after(self, step: int, trainer: Trainer) -> None:
        """Drop what a killed process wrote after the step that is resumed."""
        if launch.rank() == 0:
            is_evaluated = step in trainer.evaluations
            truncate_metrics(self.run_dir.metrics, step, keep_evaluation=is_evaluated)
            if trainer.parts.store is not None:
                trainer.parts.store.truncate(step, keep_evaluation=is_evaluated)

    def _selftest_groups(self, core: Core, trainer: Trainer) -> list[Group]:
        num_prompts = -(-self.run_file.selftest.rollouts // core.setup.sampler.group_size)
        prompts = trainer.parts.task.everything()[:num_prompts]
        setup = core.setup
        # Drawn plainly, whatever the run's sampler does: the trainer computes the distribution of these settings.
        sampling = sampling_of(setup.sampler, core.model.stop_token_ids)
        groups = sample_groups(
            core.engine, core.model, prompts, sampling, setup.sampler.group_size, run_seed=setup.run.seed, purpose=0
        )
        for group in groups:
            for rollout in group.rollouts:
                rollout.reward = rollout.shaped_reward = 0.0
        return groups

    @contextmanager
    def _status(self) -> Iterator[None]:
        if launch.rank() != 0:
            yield
            return
        self.run_dir.write_status("running")
        try:
            yield
        except StoppedEarly as stop:
            self.run_dir.write_status("stopped", str(stop), int(ExitCode.STOPPED))
            raise
        except LightRFTError as error:
            if not isinstance(error, RankLost) or self.run_dir.read_status().state == "running":
                self.run_dir.write_status("failed", str(error), int(error.exit_code))
            raise  # what the launcher of the lost rank has written by then says more
        except BaseException as error:
            self.run_dir.write_status("failed", f"{type(error).__name__}: {error}", int(ExitCode.FAILED))
            raise
        self.run_dir.write_status("done", exit_code=int(ExitCode.OK))

    @contextmanager
    def _log_file(self) -> Iterator[None]:
        if launch.rank() != 0:
            yield
            return
        handler = self.run_dir.log_handler()
        root, ours = logging.getLogger(), logging.getLogger("lightrft_core")
        root.addHandler(handler)
        ours.setLevel(logging.INFO)
        try:
            yield
        finally:
            ours.setLevel(logging.NOTSET)
            root.removeHandler(handler)
            handler.close()


@contextmanager
def _told(trainer: Trainer) -> Iterator[None]:
    """Tell trackers and callbacks how it ended, and close the store."""
    status: RunStatus = "failed"
    try:
        yield
        status = "done"
    except StoppedEarly:
        status = "stopped"
        raise
    finally:
        trainer.close()
        for tracker in trainer.parts.trackers:
            tracker.close(status)
        for callback in trainer.parts.callbacks:
            callback.on_end(status)
        if trainer.parts.store is not None:
            trainer.parts.store.close()


def checkpoint_of(run_dir: RunDir, step: int | None) -> Checkpoint:
    """The newest intact checkpoint of a run, or that of a step; `UserError` naming what there is."""
    checkpoints = Checkpoints(run_dir.checkpoints, keep=1)
    found = checkpoints.newest() if step is None else checkpoints.at(step)
    if found is None:
        have = ", ".join(str(number) for number in checkpoints.steps()) or "none"
        wanted = "no intact checkpoint" if step is None else f"no intact checkpoint of step {step}"
        raise UserError(wanted, where=str(run_dir.checkpoints), hint=f"Checkpoints there: {have}.")
    return found


def find_run(text: str) -> RunDir | None:
    """A run by path or name where `text` is one; None where it is something else, such as a run file or a recipe."""
    folders = (Path(text), Path("runs") / text)
    found = next((folder for folder in folders if RunDir(folder).run_yaml.is_file()), None)
    return RunDir.open(found) if found is not None else None
