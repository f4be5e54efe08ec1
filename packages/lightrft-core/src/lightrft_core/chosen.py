"""A component that a run file chose, with its validated options."""

from collections.abc import Iterable
from dataclasses import dataclass

from lightrft_core.descriptors import Component
from lightrft_core.sections import Section


@dataclass(frozen=True)
class Chosen:
    """`name` is the component's, or a reward's own `name`; `use` is what the run file writes to choose it."""

    kind: str
    name: str
    component: Component
    config: Section
    use: str = ""

    @property
    def label(self) -> str:
        """How lists and overrides name it: `spread` in `filters[spread].metric`."""
        return self.name if self.kind == "reward" else self.use or self.name


def any_needs(word: str, parts: Iterable[Chosen | None]) -> bool:
    """Whether one of them declares that capability word among its needs."""
    return any(part is not None and word in part.component.needs for part in parts)
