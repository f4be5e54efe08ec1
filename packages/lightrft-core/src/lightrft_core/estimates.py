"""A mean with its interval, from a handful of runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Final

_T_95: Final = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)  # the 97.5% quantile of Student's t with 1, 2, ... degrees of freedom
_NORMAL_95: Final = 1.96


@dataclass(frozen=True, slots=True)
class Estimate:
    """`mean` plus or minus `margin` is Student's 95% interval over `count` values; one value alone has no margin."""

    mean: float
    margin: float | None
    count: int

    def written(self, digits: int = 3) -> str:
        """`0.871 ± 0.031`."""
        mean = f"{self.mean:.{digits}f}"
        return mean if self.margin is None else f"{mean} ± {self.margin:.{digits}f}"


def estimate(values: Sequence[float]) -> Estimate | None:
    """None of no values."""
    count = len(values)
    if count < 2:
        return Estimate(values[0], None, 1) if values else None
    quantile = _T_95[count - 2] if count - 2 < len(_T_95) else _NORMAL_95
    return Estimate(fmean(values), quantile * stdev(values) / count**0.5, count)
