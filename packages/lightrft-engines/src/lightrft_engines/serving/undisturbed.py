"""Engines seed the process that loads them, and replace functions of torch: the trainer keeps its own."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def undisturbed() -> Iterator[None]:
    """Random numbers and the number of threads are afterwards as they were before."""
    import numpy as np
    import torch

    states, set_threads = (random.getstate(), np.random.get_state(), torch.get_rng_state()), torch.set_num_threads
    restore: tuple[Callable[[Any], None], ...] = (random.setstate, np.random.set_state, torch.set_rng_state)
    try:
        yield
    finally:
        torch.set_num_threads = set_threads
        for put, state in zip(restore, states, strict=True):
            put(state)
