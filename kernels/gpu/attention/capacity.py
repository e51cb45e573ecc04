"""Room for the work items of later steps, in tables that a captured graph reads."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import numpy as np

from kernels.gpu.attention.work_items import WorkItems

# Of each of a capacity's numbers but the rows.
MIN_ROOM = 256


class CapacityError(ValueError):
    """A step has more work items than a captured graph has room for.

    Seen as: nothing; the step is launched kernel by kernel.
    """


@dataclass(frozen=True, slots=True)
class Capacity:
    """What there is room for: launches are this large, and programs behind a step's own items stop.

    `entries` of the block table; `partials` are rows of partial results.
    """

    items: int
    pieces: int
    entries: int
    rows: int
    partials: int

    @classmethod
    def twice(cls, needed: Iterable[WorkItems], rows: int) -> "Capacity":
        """Room for steps of `rows` rows that need at most twice what these do, and some more where they are small."""
        most = np.array([_needs(items) for items in needed]).max(0)
        items, pieces, entries, _, partials = (2 * most + MIN_ROOM).tolist()
        return cls(items, pieces, entries, rows, partials)

    def and_of(self, other: "Capacity") -> "Capacity":
        """Room for what either has room for."""
        return Capacity(*(max(pair) for pair in zip(astuple(self), astuple(other), strict=True)))

    def refuse(self, items: WorkItems) -> None:
        """Raises CapacityError for work items that have no room here."""
        rooms = (self.items, self.pieces, self.entries, self.rows, self.partials)
        if any(need > room for need, room in zip(_needs(items), rooms, strict=True)):
            raise CapacityError(f"the step needs {_needs(items)} where its capacity gives {rooms}")


def _needs(items: WorkItems) -> tuple[int, int, int, int, int]:
    """In the order of `Capacity`."""
    rows = max(items.num_rows, len(items.merge_rows))
    partials = max(items.num_partials, len(items.merge_partials))
    return len(items.items), len(items.pieces), len(items.table), rows, partials
