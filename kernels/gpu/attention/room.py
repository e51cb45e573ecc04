"""What the tables of captured launches have in common, where one graph runs at a time."""

from collections.abc import Iterable

import torch

from kernels.gpu.attention.attention_shape import AttentionShape
from kernels.gpu.attention.capacity import Capacity
from kernels.gpu.attention.kernel_arguments import Partials
from kernels.gpu.attention.work_items import WorkItems

# Of tables: their windows, and their rows.
TableKey = tuple[tuple[int | None, ...], int]


def new_partials(rows: int, shape: AttentionShape, device: torch.device) -> Partials:
    """Room for so many partial rows, and one at least."""
    size = max(rows, 1), shape.heads
    return Partials(
        torch.empty((*size, shape.dim), dtype=torch.float32, device=device),
        torch.empty(size, dtype=torch.float32, device=device),
    )


class Room:
    """Partial results last from a launch to the merge behind it, so that all tables have theirs in one memory.

    It is as large as the largest have asked, and a graph keeps what it was captured with: the largest come first.
    """

    def __init__(self) -> None:
        self._partials: dict[tuple[int, int], Partials] = {}
        self._capacities: dict[TableKey, Capacity] = {}

    def capacity(self, made: Iterable[WorkItems], windows: tuple[int | None, ...], rows: int) -> Capacity:
        """As `Capacity.twice`, and for what tables of as many rows had room for before: steps of two kinds that take
        turns do not have their graph captured anew each time.
        """
        needed = Capacity.twice(made, rows)
        kept = self._capacities.get((windows, rows), needed).and_of(needed)
        self._capacities[windows, rows] = kept
        return kept

    def partials(self, rows: int, shape: AttentionShape, device: torch.device) -> Partials:
        """Of at least so many rows; what launches before left there is lost."""
        kept = self._partials.get((shape.heads, shape.dim))
        if kept is None or len(kept.lse_ptr) < rows:
            kept = self._partials[shape.heads, shape.dim] = new_partials(rows, shape, device)
        return kept
