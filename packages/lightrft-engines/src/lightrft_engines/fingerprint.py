"""A number per parameter that trainer and engine can compare: are the served weights the trained ones?"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE = 509  # prime: strides over power-of-two shapes visit every row and column


def fingerprint(name: str, tensor: "Tensor") -> float:
    """Sum of a fixed sample of the entries, each times its rank in the sample, rounded once (`math.fsum`).

    The same bits for the same values on every device and for every number of threads; a permutation of the entries
    changes it, and so does another name.
    """
    return weigh(sampled(name, tensor))


def sampled(name: str, tensor: "Tensor") -> list[float]:
    """The entries that count."""
    sample = sample_positions(name, tensor.numel())
    values: list[float] = tensor.detach().reshape(-1)[sample.start :: sample.step].cpu().double().tolist()
    return values


def sample_positions(name: str, numel: int) -> range:
    """Which entries of the flattened tensor count; for those who hold but a part of it."""
    stride = max(1, numel // SAMPLE)
    return range(sum(name.encode()) % stride, numel, stride)


def weigh(values: Sequence[float]) -> float:
    """The number, from the entries of the sample in order."""
    return math.fsum(value * (1.0 + rank / len(values)) for rank, value in enumerate(values))


def spread_names(names: Sequence[str], num: int) -> tuple[str, ...]:
    """`num` of the names, evenly from first to last; all of them where there are fewer."""
    if num >= len(names):
        return tuple(names)
    if num == 1:
        return (names[0],)
    return tuple(names[rank * (len(names) - 1) // (num - 1)] for rank in range(num))
