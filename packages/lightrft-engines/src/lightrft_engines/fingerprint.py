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
    flat = tensor.detach().reshape(-1)
    stride = max(1, flat.numel() // SAMPLE)
    start = sum(name.encode()) % stride
    values = flat[start::stride].cpu().double().tolist()
    return math.fsum(value * (1.0 + rank / len(values)) for rank, value in enumerate(values))


def spread_names(names: Sequence[str], num: int) -> tuple[str, ...]:
    """`num` of the names, evenly from first to last; all of them where there are fewer."""
    if num >= len(names):
        return tuple(names)
    if num == 1:
        return (names[0],)
    return tuple(names[rank * (len(names) - 1) // (num - 1)] for rank in range(num))
