"""Errors that a user can act on, and the exit codes that scripts can rely on.

A `UserError` is printed as one paragraph without a traceback; anything else that escapes is a bug in code.
"""

from collections.abc import Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """What the process says to its caller."""

    OK = 0
    FAILED = 1
    USER = 2
    UNFIT = 3
    STOPPED = 75  # EX_TEMPFAIL: stopped early with a checkpoint saved, run me again


class LightRFTError(Exception):
    """Base of the errors that the command line prints as one paragraph: where, what, and what to do next."""

    exit_code = ExitCode.FAILED

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if not self.hint:
            return text
        return f"{text} {self.hint}" if text.endswith((".", "!", "?", ":")) else f"{text}. {self.hint}"


class UserError(LightRFTError):
    """Something the user wrote is wrong. `where` names file, section and key; `hint` says what is allowed or to do."""

    exit_code = ExitCode.USER


class Problems(UserError):
    """Several user errors found in one pass; nothing was started."""

    def __init__(self, problems: Sequence[UserError]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems]
        count = f"{len(lines)} problem{'s' if len(lines) != 1 else ''}, nothing started."
        super().__init__("\n".join([*lines, count]))


class RunFailed(LightRFTError):
    """A run cannot go on, for a reason that its owner can understand and act on."""


class RankLost(RunFailed):
    """This rank cannot reach another one, so it ends too. `what` is what torch says."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"another rank ended or cannot be reached: {what}", hint="The first error is that of the other rank."
        )


class StepRefused(RunFailed):
    """A step that must not train; it changed no weight, and the state before it is whole and was saved."""


class NothingToTrain(StepRefused):
    """It was left without any group to train on."""


class GapTooLarge(StepRefused):
    """The engine is further from the trainer than the run allows."""


class EnvironmentUnfit(LightRFTError):
    """This machine or environment cannot do what was asked."""

    exit_code = ExitCode.UNFIT


class StoppedEarly(LightRFTError):
    """A signal or time limit ended the run after a checkpoint was saved."""

    exit_code = ExitCode.STOPPED
