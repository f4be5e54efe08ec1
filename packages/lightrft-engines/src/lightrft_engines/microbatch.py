"""Which rows go through the model together. Only speed and memory depend on it, never the result."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightrft_core.data import Batch


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
    """Siblings together, so that they share their prompt; a group is split only where it is too large by itself."""
    lengths = batch.lengths_B.tolist()
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        groups.setdefault(batch.prompt_token_ids[row], []).append(row)
    parts: list[list[int]] = []
    used = 0
    for prompt, members in groups.items():
        whole = len(prompt) + sum(lengths[row] for row in members)
        is_open = bool(parts) and limits.allow(len(parts[-1]) + len(members), used + whole)
        for row in members:
            if is_open and limits.allow(len(parts[-1]) + 1, used + lengths[row]):
                used += lengths[row] + (len(prompt) if row == members[0] else 0)
                parts[-1].append(row)
            else:
                parts.append([row])
                used, is_open = len(prompt) + lengths[row], True
    return parts
