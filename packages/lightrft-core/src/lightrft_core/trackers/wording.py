"""Metrics in words: which of them a person wants to see while a run goes on, in which order and how written."""

from collections.abc import Callable, Mapping
from typing import Final

Format = Callable[[float], str]


def fixed(value: float) -> str:
    """Three digits after the point."""
    return f"{value:.3f}"


def short(value: float) -> str:
    """Three significant digits, also of very small numbers."""
    return "0" if value == 0 else f"{value:.3g}"


def percent(value: float) -> str:
    """A share, in percent."""
    return f"{value:.1%}"


def whole(value: float) -> str:
    """No digits after the point."""
    return f"{value:,.0f}"


def thousands(value: float) -> str:
    """`1.2k` from a thousand on."""
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"


def duration(seconds: float) -> str:
    """`45s`, `12m03s`, `3h50m`, `2d04h`."""
    total = max(0, round(seconds))
    minutes, hours, days = total // 60, total // 3600, total // 86400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{total % 60:02d}s" if minutes else f"{total}s"


def pace(seconds: float) -> str:
    """Seconds of a phase, with as many digits as matter."""
    return f"{seconds:.2f}s" if seconds < 10 else f"{seconds:.0f}s"


HEALTH: Final[tuple[tuple[str, str, Format], ...]] = (
    ("reward/mean", "reward", fixed),
    ("accuracy", "accuracy", fixed),
    ("completion/length", "length", whole),
    ("completion/truncated_fraction", "truncated", percent),
    ("group/zero_spread_fraction", "no spread", percent),
    ("filter/kept_fraction", "kept", percent),
    ("filter/filled_fraction", "filled", percent),
    ("reward/unscored_fraction", "unscored", percent),
    ("train/policy_loss", "policy_loss", short),
    ("train/clip_fraction", "clipped", percent),
    ("train/clamp_fraction", "clamped", percent),
    ("train/kl", "kl", short),
    ("train/kl_clamp_fraction", "kl clamped", percent),
    ("train/entropy", "entropy", fixed),
    ("train/grad_norm", "grad norm", fixed),
    ("train/lr", "lr", short),
    ("train/skipped_steps", "skipped", whole),
    ("gap/logprob_mean_abs", "gap", short),
    ("throughput/tokens_per_s", "tok/s", thousands),
)
_NOT_TOLD_AT: Final[Mapping[str, float]] = {  # what is so unless something is wrong
    "reward/unscored_fraction": 0.0,
    "eval/unscored_fraction": 0.0,
    "train/skipped_steps": 0.0,
    "train/clamp_fraction": 0.0,
    "train/kl_clamp_fraction": 0.0,
    "filter/filled_fraction": 1.0,
}
_HELD_OUT: Final[tuple[tuple[str, str, Format], ...]] = (
    ("eval/score", "score", fixed),
    ("eval/accuracy", "accuracy", fixed),
    ("eval/reward", "reward", fixed),
    ("eval/completion/length", "length", whole),
    ("eval/completion/truncated_fraction", "truncated", percent),
    ("eval/unscored_fraction", "unscored", percent),
    ("eval/num_scored", "of", whole),
)
_LEFT_OUT: Final = frozenset(("eval/group/zero_spread_fraction",))


def health(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """(label, value) of the metrics that exist, the most telling first; faults are left out while there are none."""
    return _written(metrics, HEALTH)


def held_out(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """The same of an evaluation, then its other metrics; the score only where neither accuracy nor reward is it."""
    score = metrics.get("eval/score")
    is_twice = score is not None and score in (metrics.get("eval/accuracy"), metrics.get("eval/reward"))
    shown = {name: value for name, value in metrics.items() if not (is_twice and name == "eval/score")}
    known = {name for name, _, _ in _HELD_OUT} | _LEFT_OUT
    others = [(name.removeprefix("eval/"), fixed(value)) for name, value in shown.items() if name not in known]
    return _written(shown, _HELD_OUT) + others


def _written(metrics: Mapping[str, float], table: tuple[tuple[str, str, Format], ...]) -> list[tuple[str, str]]:
    return [
        (label, write(metrics[name]))
        for name, label, write in table
        if name in metrics and metrics[name] != _NOT_TOLD_AT.get(name)
    ]
