"""What the rows of a step read, as plain arrays: the data that every attention backend plans from.

The rule is one for prefixes, causal parts, windows and label trees: a row reads a key of a segment that covers it if
`0 <= row_position - key_position < window`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Int32s = NDArray[np.int32]
NO_WINDOW = 2**31 - 1


class Segment(Protocol):
    """One span of keys, `[kv_start, kv_end)`, and the rows that read it, `[row_start, row_end)`."""

    @property
    def row_start(self) -> int: ...
    @property
    def row_end(self) -> int: ...
    @property
    def kv_start(self) -> int: ...
    @property
    def kv_end(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def in_step(self) -> bool: ...


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """Arrays (segments,): keys are slots of the paged cache, or rows of this very step where `in_step`.

    Key k of a segment stands at `position + (k - kv_start)` of its prompt. Segments cover rows in any way; where they
    come from a prefix tree their row ranges are nested or apart, which is what the planner makes use of.
    """

    row_start: Ints
    row_end: Ints
    kv_start: Ints
    kv_end: Ints
    position: Ints
    in_step: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.row_start)

    def __getitem__(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> "Segments":
        return Segments(*(getattr(self, name)[index] for name in self.__slots__))

    @classmethod
    def of(cls, segments: Iterable[Segment]) -> "Segments":
        """Those with no row or no key are left out."""
        rows = [
            (s.row_start, s.row_end, s.kv_start, s.kv_end, s.position, s.in_step)
            for s in segments
            if s.row_start < s.row_end and s.kv_start < s.kv_end
        ]
        row_start, row_end, kv_start, kv_end, position, in_step = np.array(rows, dtype=np.int64).reshape(-1, 6).T
        return cls(row_start, row_end, kv_start, kv_end, position, in_step.astype(np.bool_))


@dataclass(frozen=True, slots=True, eq=False)
class PagedSegments:
    """Segments whose keys are found through a block table: key k lies in block `table[first + k // page]`.

    `first`, `start`, `end` and `position` are (segments,): keys `[start, end)` are counted from the first slot of the
    first block, and key 0 would stand at `position`, which may be negative. In-step keys take blocks as well: the
    step's rows in pieces of `page`, whose ids are the first ceil(rows / page) entries of the table.
    """

    row_start: Ints
    row_end: Ints
    first: Ints
    start: Ints
    end: Ints
    position: Ints
    in_step: NDArray[np.bool_]
    table: Int32s
    page: int


def ranges(counts: Ints) -> Ints:
    """0 .. counts[0]-1, 0 .. counts[1]-1, and so on."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0, dtype=np.int64) - np.repeat(ends - counts, counts)


def paged(segments: Segments, num_rows: int, page: int) -> PagedSegments:
    """Slot runs as block ids. Runs of one owner that meet at block boundaries become one segment again.

    A cache hands out blocks in runs, so one node's KV may be several segments over the same rows, each behind the
    last; with a table they are one, and the kernel need not start anew at each run.
    """
    joined = np.zeros(len(segments), dtype=np.bool_)
    if len(segments) > 1:
        before, after = segments[np.arange(len(segments) - 1)], segments[np.arange(1, len(segments))]
        joined[1:] = (
            (before.row_start == after.row_start)
            & (before.row_end == after.row_end)
            & (before.position + before.kv_end - before.kv_start == after.position)
            & ~(before.in_step | after.in_step)
            & (before.kv_end % page == 0)
            & (after.kv_start % page == 0)
        )
    heads = np.flatnonzero(~joined)
    first_block = segments.kv_start // page
    counts = np.where(segments.in_step, 0, (segments.kv_end - 1) // page - first_block + 1)
    step_pages = -(-num_rows // page)
    table = np.concatenate((np.arange(step_pages), np.repeat(first_block, counts) + ranges(counts)))
    first = np.where(segments.in_step, first_block, step_pages + np.cumsum(counts) - counts)
    lengths = np.add.reduceat(segments.kv_end - segments.kv_start, heads) if len(heads) else heads
    head = segments[heads]
    start = head.kv_start % page
    return PagedSegments(
        row_start=head.row_start,
        row_end=head.row_end,
        first=first[heads],
        start=start,
        end=start + lengths,
        position=head.position - start,
        in_step=head.in_step,
        table=table.astype(np.int32),
        page=page,
    )
