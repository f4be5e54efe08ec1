"""Which rows go through the model together. Only speed and memory depend on it, never the result."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightrft_core.data import Batch

from lightrft_engines.training.balance import partition


@dataclass(frozen=True, slots=True)
class Limits:
    """Most rows (None: any number) and most tokens, padding included, of one pass; a single row always goes."""

    rows: int | None
    tokens: int

    def allow(self, num_rows: int, num_tokens: int) -> bool:
        """Whether a pass may be this large."""
        return num_rows <= 1 or (num_tokens <= self.tokens and (self.rows is None or num_rows <= self.rows))


def cut_padded(batch: Batch, rows: Sequence[int], limits: Limits) -> list[list[int]]:
    """Rows of like length together, longest first, so that memory peaks at once and little is padding."""
    lengths = batch.lengths_B.tolist()
    total = {row: len(batch.prompt_token_ids[row]) + lengths[row] for row in rows}
    parts: list[list[int]] = []
    for row in sorted(rows, key=lambda row: -total[row]):
        if parts and limits.allow(len(parts[-1]) + 1, (len(parts[-1]) + 1) * total[parts[-1][0]]):
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def cut_packed(batch: Batch, rows: Sequence[int], limits: Limits) -> list[list[int]]:
    """Siblings together, so that they share their prompt; a group is split only where it is too large by itself.

    As many passes as filling them one after another takes, then evened out, so that the largest is as small as it can
    be and ranks that wait for each other wait little.
    """
    groups = sibling_rows(batch, rows)
    parts = _filled(batch, groups, limits)
    return _evened(batch, groups, limits, len(parts)) or parts


def sibling_rows(batch: Batch, rows: Sequence[int]) -> list[list[int]]:
    """The rows by prompt, in order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        groups.setdefault(batch.prompt_token_ids[row], []).append(row)
    return list(groups.values())


def packed_tokens(batch: Batch, siblings: Sequence[int]) -> int:
    """Tokens of siblings that share their prompt."""
    return len(batch.prompt_token_ids[siblings[0]]) + int(batch.lengths_B[list(siblings)].sum())


def _filled(batch: Batch, groups: list[list[int]], limits: Limits) -> list[list[int]]:
    """One after another into the last pass, while it takes them."""
    lengths = batch.lengths_B.tolist()
    parts: list[list[int]] = []
    used = 0
    for members in groups:
        prompt = len(batch.prompt_token_ids[members[0]])
        whole = packed_tokens(batch, members)
        is_open = bool(parts) and limits.allow(len(parts[-1]) + len(members), used + whole)
        for row in members:
            if is_open and limits.allow(len(parts[-1]) + 1, used + lengths[row]):
                used += lengths[row] + (prompt if row == members[0] else 0)
                parts[-1].append(row)
            else:
                parts.append([row])
                used, is_open = prompt + lengths[row], True
    return parts


def _evened(batch: Batch, groups: list[list[int]], limits: Limits, num: int) -> list[list[int]] | None:
    """Whole groups in `num` parts of like size; None where a part would be empty or too large."""
    if not 1 < num <= len(groups):
        return None
    tokens = [packed_tokens(batch, members) for members in groups]
    chosen = partition(tokens, num)
    parts = [[row for number in numbers for row in groups[number]] for numbers in chosen]
    sizes = [sum(tokens[number] for number in numbers) for numbers in chosen]
    fits = all(part and limits.allow(len(part), size) for part, size in zip(parts, sizes, strict=True))
    return parts if fits else None
