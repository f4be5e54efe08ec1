"""How much memory a phase took at its peak: of the device where the strategy has one, else of this process."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lightrft_core.abilities import MeteredStrategy
from lightrft_core.protocols import Strategy

Meter = Callable[[], float | None]
_STATUS: Final = Path("/proc/self/status")
_RESET: Final = Path("/proc/self/clear_refs")
_PEAK: Final = re.compile(rb"VmHWM:\s+(\d+)")
_NOW: Final = re.compile(rb"VmRSS:\s+(\d+)")


def unmetered() -> float | None:
    """Nobody measures."""
    return None


def process_peak() -> float | None:
    """Bytes: the most that this process had resident since the last call; a tenth of a millisecond.

    What it has now, where the kernel's peak cannot be set back; None outside Linux.
    """
    try:
        status = _STATUS.read_bytes()
    except OSError:
        return None
    try:
        _RESET.write_text("5")
    except OSError:
        return _bytes(_NOW, status)
    return _bytes(_PEAK, status)


def meter_of(strategy: Strategy) -> Meter:
    """Of the strategy's device; of this process where that is the CPU, or not known."""
    if isinstance(strategy, MeteredStrategy) and strategy.peak_bytes() is not None:
        return strategy.peak_bytes
    return process_peak


def _bytes(field: re.Pattern[bytes], status: bytes) -> float | None:
    found = field.search(status)
    return None if found is None else float(found[1]) * 1024
