"""Ranks that share one copy of the model: consecutive ones, as many as `engine.tensor_parallel`."""

from collections.abc import Sequence

from lightrft_core.errors import UserError
from lightrft_core.protocols import Json, World

from lightrft_engines.serving.siblings import Sibling, from_json, to_json


class Sharers:
    """Those that share this rank's copy, itself among them; nothing is sent where it has one to itself."""

    def __init__(self, world: World, size: int) -> None:
        if world.size % size:
            raise UserError(
                f"{size} ranks cannot share a copy of the model: there are {world.size} ranks.",
                where="engine.tensor_parallel",
                hint="Colocated it divides the number of ranks; in a server (engine.mode: server) it need not.",
            )
        self._world, self._size = world, size
        self.place = world.rank % size

    @property
    def is_leader(self) -> bool:
        """Whether this is the first of them."""
        return self.place == 0

    def gather(self, item: Json) -> list[Json]:
        """The item of each, in rank order."""
        if self._size == 1:
            return [item]
        first = self._world.rank - self.place
        return self._world.gather(item)[first : first + self._size]

    def siblings(self, own: Sequence[Sibling]) -> list[list[Sibling]]:
        """What each has to write, in rank order."""
        if self._size == 1:
            return [list(own)]
        return [[from_json(item) for item in items] for items in self.gather([to_json(one) for one in own])]
