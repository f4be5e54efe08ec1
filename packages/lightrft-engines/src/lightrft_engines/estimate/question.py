"""What the user asks about: a run as the command line gives it, and the same with some settings changed."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from lightrft_core.command_line import resolve_command_line
from lightrft_core.errors import UserError
from lightrft_core.plugins import Plugins
from lightrft_core.runfile import RunFile
from lightrft_core.session import find_run

from lightrft_engines.estimate.case import Case, make_case
from lightrft_engines.estimate.phases import Estimate, estimate
from lightrft_engines.estimate.target import Target
from lightrft_engines.training.config import TrainingConfig


@dataclass
class Question:
    """The words of the command line, resolved. Prompts are measured once, and so is every trace."""

    run: str | None
    flags: list[str]
    sets: list[str]
    run_file: RunFile
    plugins: Plugins
    _first: Case | None = None
    _known: dict[Hashable, object] = field(default_factory=dict)

    @classmethod
    def read(cls, words: Sequence[str], sets: Sequence[str]) -> "Question":
        """Raises `Problems` with everything that is wrong."""
        flags = list(words)
        run = flags.pop(0) if flags and not flags[0].startswith("-") else None
        found = find_run(run) if run is not None else None
        run = run if found is None else str(found.run_yaml)
        run_file, plugins = resolve_command_line(run, list(sets), flags)
        return cls(run, flags, list(sets), run_file, plugins)

    @property
    def strategy(self) -> TrainingConfig:
        """The options of the strategy."""
        return _strategy_of(self.run_file)

    def answer(self, target: Target, changes: Sequence[str] = ()) -> Estimate:
        """The estimate, with further `--set`s. `UserError` where the run could not start so."""
        run_file, plugins = self.run_file, self.plugins
        if changes:
            run_file, plugins = resolve_command_line(self.run, [*self.sets, *changes], self.flags)
        _strategy_of(run_file)
        case = make_case(run_file, plugins, target, self._first)
        self._first = self._first or case
        return estimate(case, self._known)


def _strategy_of(run_file: RunFile) -> TrainingConfig:
    """`UserError` for a strategy whose memory is not known."""
    config = run_file.strategy.config
    if isinstance(config, TrainingConfig):
        return config
    raise UserError(
        f"the memory of strategy {run_file.strategy.name!r} is not known: it is none of LightRFT's own.",
        where="strategy.use",
        hint="Choose single, ddp, fsdp2 or deepspeed.",
    )
