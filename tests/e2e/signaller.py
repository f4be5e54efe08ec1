"""A plugin that sends its process a signal, once in a folder: a callback between two steps, a filter within one."""

import os
import signal
import threading
from pathlib import Path

from lightrft_core import hookimpl
from lightrft_core.descriptors import Component
from lightrft_core.sections import Section

LIGHTRFT_API = 1


class SignalConfig(Section):
    """When, which, how often."""

    step: int = 3
    """The step."""
    name: str = "SIGTERM"
    """The signal."""
    times: int = 1
    """How often."""
    to_parent: bool = False
    """Send it to the process that started this one, and go on when that has passed it on."""


def send(config):
    """Send it, unless one was sent in this folder before."""
    if Path("sent").exists():
        return
    Path("sent").touch()
    number = getattr(signal, config.name)
    if config.to_parent:
        send_by_parent(number)
    else:
        for _ in range(config.times):
            os.kill(os.getpid(), number)


def send_by_parent(number):
    """Returns when it has come back, and was handled as it always is."""
    has_come, handle = threading.Event(), signal.getsignal(number)

    def tell(number, frame):
        handle(number, frame)
        has_come.set()

    signal.signal(number, tell)
    os.kill(os.getppid(), number)
    has_come.wait(timeout=60)


def within(group, *, config):
    """Keeps every group; sends while the step's groups are looked at."""
    if group.rollouts[0].policy_version == config.step - 1:
        send(config)
    return True


class After:
    """Sends when the step is done."""

    def __init__(self, config, setup):
        self.config = config

    def on_step(self, report):
        if report.step == self.config.step:
            send(self.config)

    def on_evaluation(self, step, metrics):
        pass

    def on_save(self, step, path):
        pass

    def on_end(self, status):
        pass


@hookimpl
def lightrft_filters():
    yield Component(name="signal_within", target=f"{__file__}:within", config=f"{__file__}:SignalConfig", summary=".")


@hookimpl
def lightrft_callbacks():
    yield Component(name="signal_after", target=f"{__file__}:After", config=f"{__file__}:SignalConfig", summary=".")
