"""Parts of like weight: the largest differencing method of Karmarkar and Karp, for any number of parts.

Each item starts as a partition of its own; the two partitions whose parts differ most are merged, heaviest part with
lightest, until one is left ("The differencing method of set partitioning", Karmarkar and Karp 1982).
"""

import heapq
from collections.abc import Sequence

Part = tuple[float, list[int]]  # weight, items


def partition(weights: Sequence[float], num: int) -> list[list[int]]:
    """`num` lists of item numbers whose sums of weights are close; some are empty where items are fewer.

    Deterministic: every rank that knows the weights finds the same. Items of a part are in ascending order.
    """
    if num < 1:
        raise ValueError(f"cannot cut into {num} parts")
    heap: list[tuple[float, int, list[Part]]] = []
    for item, weight in enumerate(weights):
        parts: list[Part] = [(0.0, []) for _ in range(num - 1)] + [(float(weight), [item])]
        heap.append((-float(weight), item, parts))
    heapq.heapify(heap)
    while len(heap) > 1:
        _, order, left = heapq.heappop(heap)
        _, _, right = heapq.heappop(heap)
        merged = _merged(left, right)
        heapq.heappush(heap, (merged[0][0] - merged[-1][0], order, merged))
    parts = heap[0][2] if heap else [(0.0, []) for _ in range(num)]
    return sorted((sorted(items) for _, items in parts), key=lambda items: items[:1] or [len(weights)])


def _merged(left: list[Part], right: list[Part]) -> list[Part]:
    """Lightest with heaviest; ascending by weight again."""
    pairs = zip(left, reversed(right), strict=True)
    merged = [(own + other, items + others) for (own, items), (other, others) in pairs]
    return sorted(merged, key=lambda part: (part[0], part[1]))
