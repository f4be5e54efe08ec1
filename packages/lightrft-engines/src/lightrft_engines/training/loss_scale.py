"""Dynamic loss scaling for fp16: gradients of a multiple of the loss, so that small ones do not vanish.

As `torch.amp.GradScaler`: the scale is halved where a gradient overflows, and doubled after 2000 steps in a row where
none does. Unlike there it never falls below 1: what overflows then is no fault of the scale.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

START: Final = 2.0**16
GROWTH: Final = 2.0
BACKOFF: Final = 0.5
INTERVAL: Final = 2000
LOWEST: Final = 1.0


class LossScale:
    """`used` is what the losses of this step are multiplied by; `was_lowered` tells of the last step."""

    def __init__(self, interval: int = INTERVAL) -> None:
        self.used, self._next, self._num_sound, self._interval = START, START, 0, interval
        self.was_lowered = False

    def begin(self) -> float:
        """The scale of a new step."""
        self.used = self._next
        return self.used

    def end(self, *, is_sound: bool) -> None:
        """The step's gradient is finite, or it is not."""
        self._num_sound = self._num_sound + 1 if is_sound else 0
        self.was_lowered = not is_sound and self.used > LOWEST
        if not is_sound:
            self._next = max(LOWEST, self.used * BACKOFF)
        elif self._num_sound == self._interval:
            self._next, self._num_sound = self.used * GROWTH, 0

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return {"scale": torch.tensor(self._next), "sound_steps": torch.tensor(self._num_sound)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        self._next, self._num_sound = float(state["scale"]), int(state["sound_steps"])
