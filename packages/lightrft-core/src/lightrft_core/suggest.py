"""Did you mean ...? Nearest names first among the neighbours, then everywhere."""

import re
from collections.abc import Iterable, Mapping, Sequence

_MAX_LISTED = 12


def distance(first: str, second: str) -> int:
    """Edits between two words: insert, drop, replace, or swap neighbours (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, 1):
        older, before, row = before, row, [i]
        for j, other in enumerate(second, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == second[j - 2] and first[i - 2] == other:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]


def nearest(word: str, names: Iterable[str], limit: int = 3) -> list[str]:
    """The names that `word` may have been meant to be, best first; case, hyphens and plurals count little."""
    wanted = _plain(word)
    ranked = sorted((_cost(wanted, _plain(name)), index, name) for index, name in enumerate(names))
    return [name for cost, _, name in ranked if cost <= _tolerance(wanted)][:limit]


def did_you_mean(word: str, siblings: Sequence[str], elsewhere: Mapping[str, Sequence[str]] | None = None) -> str:
    """A sentence for a key that does not exist.

    `siblings` are the keys that may stand there; `elsewhere` maps other keys to the sections that have them. A key that
    exists elsewhere by exactly this name wins over a distant neighbour. Empty where nothing can be said.
    """
    others = elsewhere or {}
    plain = {_plain(name): name for name in others}
    exact = plain.get(_plain(word))
    near = nearest(word, siblings, limit=1)
    if exact is not None and not (near and _cost(_plain(word), _plain(near[0])) <= 0.5):
        return _belongs(exact, others[exact])
    if near:
        return f"Did you mean {near[0]!r}?"
    far = nearest(word, others, limit=1)
    if far:
        return f"Did you mean {far[0]!r}? {_belongs(far[0], others[far[0]])}"
    return listed(siblings)


def listed(names: Sequence[str]) -> str:
    """What there is, shortened where it is much."""
    if not names:
        return ""
    more = ", ..." if len(names) > _MAX_LISTED else ""
    return f"There is: {', '.join(names[:_MAX_LISTED])}{more}."


def _belongs(key: str, sections: Sequence[str]) -> str:
    return f"{key!r} belongs in section {' or '.join(sections[:3])}."


def _plain(word: str) -> str:
    return re.sub(r"[-\s]+", "_", word.strip().lower())


def _cost(word: str, name: str) -> float:
    if word == name:
        return 0.0
    if word.rstrip("s") == name.rstrip("s") or word.replace("_", "") == name.replace("_", ""):
        return 0.5
    cost = float(distance(word, name))
    if sorted(word.split("_")) == sorted(name.split("_")):
        return min(cost, 1.0)
    if min(len(word), len(name)) >= 3 and _has_part(word, name):
        return min(cost, _tolerance(word))
    return cost


def _has_part(word: str, name: str) -> bool:
    """One is the other plus whole words, as `size` in `group_size`, or starts with it, as `temp` and `temperature`."""
    if word.startswith(name) or name.startswith(word):
        return True
    return f"_{word}_" in f"_{name}_" or f"_{name}_" in f"_{word}_"


def _tolerance(word: str) -> float:
    return max(1.0, round(len(word) / 3.5))
