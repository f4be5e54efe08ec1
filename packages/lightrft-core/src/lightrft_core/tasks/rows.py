"""Tasks over prompts that are in memory: passes without end, each in an order of its own, resumable anywhere.

The order of a pass follows from (seed, pass number) alone, so the state is two integers. Neighbouring passes are
spaced: what ended one does not begin the next, so a draw of up to a third of the prompts never holds one twice.
"""

import hashlib
from collections.abc import Mapping, Sequence

from lightrft_core.data import Prompt
from lightrft_core.errors import UserError
from lightrft_core.protocols import Json


class RowsTask:
    """A `protocols.Task` over a list of prompts. Ids must be distinct; `ValueError` where they are not."""

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, shuffle: bool = True) -> None:
        if not prompts:
            raise UserError("there are no prompts", where="task", hint="Give it at least one row.")
        self._prompts = list(prompts)
        self._ids = [prompt.id for prompt in prompts]
        if len(set(self._ids)) != len(self._ids):
            raise ValueError("two prompts of one task have the same id")
        self._seed, self._shuffle = seed, shuffle
        self._epoch = self._position = 0
        self._order = self._order_of(0)
        self._fingerprint = fingerprint_of(self._prompts)

    def __len__(self) -> int:
        return len(self._prompts)

    def draw(self, num: int) -> list[Prompt]:
        """The next `num` prompts; a new pass begins where one ends."""
        drawn: list[Prompt] = []
        while len(drawn) < num:
            if self._position == len(self._order):
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._order_of(self._epoch)
            taken = self._order[self._position : self._position + num - len(drawn)]
            drawn += [self._prompts[row] for row in taken]
            self._position += len(taken)
        return drawn

    def everything(self) -> list[Prompt]:
        """All prompts once, in the order they were given."""
        return list(self._prompts)

    def fingerprint(self) -> str:
        """Hash of ids, messages, references, labels and media."""
        return self._fingerprint

    def state_dict(self) -> dict[str, Json]:
        """Pass, position in it, and the data it belongs to."""
        return {"epoch": self._epoch, "position": self._position, "fingerprint": self._fingerprint}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Go on where `state` was taken. Raises `UserError` where it belongs to other data."""
        refuse_other_data(state["fingerprint"], self._fingerprint)
        self._epoch, self._position = int(state["epoch"]), int(state["position"])
        self._order = self._order_of(self._epoch)

    def _order_of(self, epoch: int) -> list[int]:
        if not self._shuffle:
            return list(range(len(self._prompts)))
        order = self._hashed(epoch)
        return order if epoch == 0 else _spaced(order, self._hashed(epoch - 1))

    def _hashed(self, epoch: int) -> list[int]:
        keys = [hashlib.sha256(f"{self._seed}/{epoch}/{name}".encode()).digest() for name in self._ids]
        return sorted(range(len(keys)), key=keys.__getitem__)


class MixedTask:
    """Several tasks drawn from in fixed proportions, exactly so at every moment; each goes its own passes.

    `probabilities` are shares of the draws, in any scale. One pass counts as many prompts as all sources hold.
    """

    def __init__(self, sources: Sequence[RowsTask], probabilities: Sequence[float]) -> None:
        if len(sources) != len(probabilities):
            raise ValueError(f"{len(sources)} sources and {len(probabilities)} probabilities; they must be as many")
        self._sources = list(sources)
        total = sum(probabilities)
        self._shares = [share / total for share in probabilities]
        self._drawn = [0] * len(sources)

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    def draw(self, num: int) -> list[Prompt]:
        """The next `num` prompts, always from the source that is furthest behind its share."""
        return [prompt for _ in range(num) for prompt in self._next_source().draw(1)]

    def everything(self) -> list[Prompt]:
        """All prompts of all sources once, in the order they were given."""
        return [prompt for source in self._sources for prompt in source.everything()]

    def fingerprint(self) -> str:
        """Hash of the sources' fingerprints and shares."""
        text = "/".join([*(source.fingerprint() for source in self._sources), *map(repr, self._shares)])
        return hashlib.sha256(text.encode()).hexdigest()

    def state_dict(self) -> dict[str, Json]:
        """Draws so far, the sources' states, and the data it belongs to."""
        sources = [source.state_dict() for source in self._sources]
        return {"drawn": list(self._drawn), "sources": sources, "fingerprint": self.fingerprint()}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Go on where `state` was taken. Raises `UserError` where it belongs to other data."""
        refuse_other_data(state["fingerprint"], self.fingerprint())
        self._drawn = [int(num) for num in state["drawn"]]
        for source, own in zip(self._sources, state["sources"], strict=True):
            source.load_state_dict(own)

    def _next_source(self) -> RowsTask:
        total = sum(self._drawn) + 1
        behind = [share * total - drawn for share, drawn in zip(self._shares, self._drawn, strict=True)]
        chosen = max(range(len(behind)), key=behind.__getitem__)
        self._drawn[chosen] += 1
        return self._sources[chosen]


def fingerprint_of(prompts: Sequence[Prompt]) -> str:
    """Hash of everything in the prompts that a run depends on; metadata is left out, files count by path."""
    digest = hashlib.sha256()
    for prompt in prompts:
        messages = [(message.get("role"), message.get("content")) for message in prompt.messages]
        digest.update(repr((prompt.id, messages, prompt.label, prompt.reference)).encode(errors="surrogatepass"))
        for media in prompt.media:
            source = media.source.encode(errors="surrogateescape") if isinstance(media.source, str) else media.source
            digest.update(media.kind.encode() + hashlib.sha256(source).digest())
    return digest.hexdigest()


def refuse_other_data(saved: str, present: str) -> None:
    """Raise `UserError` unless the checkpoint's data and the present data are the same."""
    if saved != present:
        raise UserError(
            f"the data is not what this checkpoint was trained on (fingerprint {present[:12]}, not {saved[:12]})",
            where="task",
            hint="Resume with the same files and task options, or start a new run from the exported model.",
        )


def _spaced(order: list[int], previous: list[int]) -> list[int]:
    """Move what ended the previous pass out of the first third, into the middle third; the last third stays.

    There is always room: the middle holds at least as many others as the first third holds of the previous end.
    """
    third = len(order) // 3
    recent = set(previous[len(order) - third :])
    spaced = list(order)
    free = (place for place in range(third, len(order) - third) if order[place] not in recent)
    for place in range(third):
        if order[place] in recent:
            other = next(free)
            spaced[place], spaced[other] = spaced[other], spaced[place]
    return spaced
