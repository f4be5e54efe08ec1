"""A plugin whose callback does what should never happen, on one rank after one step; the path is given to run files."""

import ctypes
import os
import signal

from lightrft_core import hookimpl
from lightrft_core.descriptors import Component
from lightrft_core.errors import RunFailed
from lightrft_core.sections import Section

LIGHTRFT_API = 1


class TroubleConfig(Section):
    """What happens, and where."""

    how: str
    """Name of a method below."""
    rank: int = 1
    """On this rank."""
    step: int = 1
    """After this step."""


class Trouble:
    """Makes it happen."""

    def __init__(self, config, setup):
        self.config, self.rank = config, setup.world.rank

    def on_step(self, report):
        if (self.rank, report.step) == (self.config.rank, self.config.step):
            getattr(self, self.config.how)()

    def kill(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def crash(self):
        raise ZeroDivisionError("by zero")

    def fail(self):
        raise RunFailed("the disk is on fire", where="callbacks", hint="Put it out.")

    def hang(self):
        ctypes.CDLL(None).pause()

    def on_evaluation(self, step, metrics):
        pass

    def on_save(self, step, path):
        pass

    def on_end(self, status):
        pass


@hookimpl
def lightrft_callbacks():
    yield Component(name="trouble", target=f"{__file__}:Trouble", config=f"{__file__}:TroubleConfig", summary=".")
