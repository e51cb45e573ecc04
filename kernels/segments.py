"""What the rows of a step read: made once a step, and planned from by every attention backend.

The rule is one for prefixes, causal parts, windows and label trees: a row reads a key of a segment that covers it if
`0 <= row_position - key_position < window`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Int32s = NDArray[np.int32]
NO_WINDOW = 2**31 - 1


def reach(window: int | None) -> int:
    """How far from a row the keys are that it no longer reads; None is no window."""
    return NO_WINDOW if window is None else window


class Segment(NamedTuple):
    """Rows `[row_start, row_end)` read the keys `[kv_start, kv_end)`: each what is not behind it.

    Keys are slots of the cache, or rows of this very step where `in_step`. `position` is the first one's place in its
    prompt; the others follow it one by one.
    """

    row_start: int
    row_end: int
    kv_start: int
    kv_end: int
    position: int
    in_step: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """`table` (segments, 6), contiguous: the fields of each `Segment`. None has no row or no key.

    Segments cover rows in any way; where they come from a prefix tree their row ranges are nested or apart, which is
    what planners make use of.
    """

    table: Ints

    def __post_init__(self) -> None:
        assert self.table.shape[1:] == (6,), self.table.shape
        assert self.table.dtype == np.int64, self.table.dtype
        assert self.table.flags.c_contiguous
        assert bool((self.row_start < self.row_end).all()), "a segment without a row"
        assert bool((self.kv_start < self.kv_end).all()), "a segment without a key"

    @classmethod
    def of(cls, segments: Iterable[Segment]) -> "Segments":
        return cls(np.array([*segments], dtype=np.int64).reshape(-1, 6))

    def for_rows(self, rows: Ints) -> "Segments":
        """What `rows`, ascending, read: row i here is `rows[i]` there. Keys are those that they were."""
        table = self.table.copy()
        table[:, :2] = np.searchsorted(rows, table[:, :2])
        return Segments(np.ascontiguousarray(table[table[:, 0] < table[:, 1]]))

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Segment]:
        for row_start, row_end, kv_start, kv_end, position, in_step in self.table.tolist():
            yield Segment(row_start, row_end, kv_start, kv_end, position, bool(in_step))

    @property
    def row_start(self) -> Ints:
        return self.table[:, 0]

    @property
    def row_end(self) -> Ints:
        return self.table[:, 1]

    @property
    def kv_start(self) -> Ints:
        return self.table[:, 2]

    @property
    def kv_end(self) -> Ints:
        return self.table[:, 3]

    @property
    def position(self) -> Ints:
        return self.table[:, 4]

    @property
    def in_step(self) -> NDArray[np.bool_]:
        return self.table[:, 5].astype(np.bool_)
