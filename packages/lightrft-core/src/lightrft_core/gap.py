"""How far the engine's log-probabilities are from the trainer's, over all tokens of a step and all ranks.

Figures that add up: sums, largest values, and a histogram fine enough to read a quantile off it to within 1.1%. So the
micro-batches, updates and ranks of a step are one gap, whatever the cut.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Json = Any  # what json.dumps takes
BINS_PER_OCTAVE = 64
SMALLEST, LARGEST = 2.0**-24, 2.0**10  # nats: what is smaller or larger is counted in the first or last bin
NUM_BINS = 34 * BINS_PER_OCTAVE


@dataclass(frozen=True, slots=True)
class Gap:
    """Of d = l_trainer - l_engine, in nats, over `tokens` tokens: sums and largest values of |d|, exp(d), exp(|d|).

    `counts` are (bin, tokens) pairs: bin b holds |d| from `SMALLEST` * 2^(b / 64) on, the first one all that is less.
    """

    tokens: float
    abs_sum: float
    abs_max: float
    ratio_sum: float
    ratio_max: float
    error_sum: float
    counts: tuple[tuple[int, int], ...] = ()

    @property
    def mean(self) -> float:
        """Mean of |d|."""
        return self.abs_sum / self.tokens

    @property
    def error(self) -> float:
        """Mean of exp(|d|): by what factor the two disagree about a token's probability."""
        return self.error_sum / self.tokens

    def quantile(self, share: float) -> float:
        """The least value that so large a share of all |d| does not exceed, rounded up by at most 1.1%."""
        wanted, seen = share * self.tokens, 0
        for number, count in self.counts:
            seen += count
            if seen >= wanted and number < NUM_BINS - 1:
                return min(float(SMALLEST * 2.0 ** ((number + 1) / BINS_PER_OCTAVE)), self.abs_max)
        return self.abs_max

    def metrics(self) -> dict[str, float]:
        """By the names under which they are logged."""
        return {
            "gap/logprob_mean_abs": self.mean,
            "gap/logprob_p99_abs": self.quantile(0.99),
            "gap/logprob_max_abs": self.abs_max,
            "gap/ratio_mean": self.ratio_sum / self.tokens,
            "gap/ratio_max": self.ratio_max,
            "gap/prob_error": self.error,
        }

    def to_json(self) -> Json:
        """For other ranks."""
        sums = (self.tokens, self.abs_sum, self.abs_max, self.ratio_sum, self.ratio_max, self.error_sum)
        return [*sums, self.counts]

    @classmethod
    def from_json(cls, item: Sequence[Json]) -> "Gap":
        """What `to_json` gave."""
        tokens, abs_sum, abs_max, ratio_sum, ratio_max, error_sum, counts = item
        pairs = tuple((int(number), int(count)) for number, count in counts)
        return cls(tokens, abs_sum, abs_max, ratio_sum, ratio_max, error_sum, pairs)


def merged(gaps: Iterable[Gap | None]) -> Gap | None:
    """One gap of several; None where no token was measured."""
    found = [gap for gap in gaps if gap is not None and gap.tokens]
    if not found:
        return None
    counts: Counter[int] = Counter()
    for gap in found:
        counts.update(dict(gap.counts))
    return Gap(
        tokens=sum(gap.tokens for gap in found),
        abs_sum=sum(gap.abs_sum for gap in found),
        abs_max=max(gap.abs_max for gap in found),
        ratio_sum=sum(gap.ratio_sum for gap in found),
        ratio_max=max(gap.ratio_max for gap in found),
        error_sum=sum(gap.error_sum for gap in found),
        counts=tuple(sorted(counts.items())),
    )
