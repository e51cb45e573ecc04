"""Segments as the GPU reads them: through a block table."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.segments import Int32s, Ints, Segments


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
        before, after = Segments(segments.table[:-1]), Segments(segments.table[1:])
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
    head = Segments(segments.table[heads])
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
