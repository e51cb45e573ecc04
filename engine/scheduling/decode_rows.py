"""A step that only decodes, made from the decode step before it: what changes from one to the next is a few numbers.

Building a step row by row costs some ten microseconds a row, as much as a GPU takes for all of it. Here a row that
goes on moves by one token, in arrays; rows that ended are left out. What joins is built anew.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from engine.scheduling.reads import Reads
from engine.scheduling.scheduler_output import SchedulerOutput
from engine.scheduling.sequence import Sequence
from kernels.segments import Ints, Segments


class DecodeRows:
    """The rows of the last decode step. `output` is that step; `next` makes the one behind it.

    A row's own segment, which ends where the row's KV is written, is drawn out to cover `ahead` more tokens as far as
    its run of blocks goes. So the segments, and what is planned from them, stay the same object for as many steps.
    """

    def __init__(self, built: SchedulerOutput, running: Mapping[int, Sequence], ahead: int) -> None:
        """`built` is of all that is `running`, and of nothing else."""
        self._ahead = ahead
        self._keys = built.reads.key.copy()
        self._run_ends = np.array([_run_end(running[key]) for key in self._keys.tolist()], dtype=np.int64)
        self._own = _own_segments(built)
        self.output = replace(built, segments=self._drawn_out(built.segments, built.slot_mapping), ahead=ahead)

    def next(self, running: Mapping[int, Sequence]) -> SchedulerOutput | None:
        """The next step of `running`; None where it has to be built anew: a row joined, or left its run of blocks."""
        kept = np.fromiter((key in running for key in self._keys.tolist()), dtype=np.bool_, count=len(self._keys))
        count = int(kept.sum())
        if count < len(running) or not count:
            return None
        before = self.output
        if before.adapters is not None:  # what it loaded is there
            before = replace(before, adapters=before.adapters.for_rows(slice(None)))
        if count < len(kept):
            before = self._without(before, kept)
        slots = before.slot_mapping + 1
        if bool((slots >= self._run_ends).any()):
            return None
        ahead = before.ahead - 1
        segments = before.segments
        if ahead < 0:
            segments, ahead = self._drawn_out(segments, slots), self._ahead
        self.output = replace(
            before,
            input_ids=self._inputs(running),
            position_ids=before.position_ids + 1,
            slot_mapping=slots,
            segments=segments,
            num_decode_tokens=count,
            ahead=ahead,
        )
        return self.output

    def _inputs(self, running: Mapping[int, Sequence]) -> Ints:
        return np.array([running[key].last_token for key in self._keys.tolist()], dtype=np.int64)

    def _drawn_out(self, segments: Segments, slots: Ints) -> Segments:
        table = segments.table.copy()
        table[self._own, 3] = np.minimum(slots + 1 + self._ahead, self._run_ends)
        return Segments(table)

    def _without(self, before: SchedulerOutput, kept: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> SchedulerOutput:
        """The last step as if it had been of the rows that are `kept` alone."""
        rows = np.flatnonzero(kept)
        self._keys, self._run_ends = self._keys[rows], self._run_ends[rows]
        made = replace(
            before,
            input_ids=before.input_ids[rows],
            position_ids=before.position_ids[rows],
            slot_mapping=before.slot_mapping[rows],
            segments=before.segments.for_rows(rows),
            reads=Reads.samples(np.arange(len(rows)), self._keys),
            adapters=None if before.adapters is None else before.adapters.for_rows(rows),
        )
        self._own = _own_segments(made)
        return made


def _run_end(sequence: Sequence) -> int:
    """The slot behind the run of blocks that holds the sequence's last token."""
    node, count = sequence.node, sequence.num_output_tokens
    if sequence.is_tail:
        table, place = node.table, node.num_tokens + count - 1
    else:
        table, place = sequence.table, count - 1
    assert table is not None
    for first, blocks in table.runs:
        if place < blocks * table.block_size:
            return (first + blocks) * table.block_size
        place -= blocks * table.block_size
    raise AssertionError((place, table.runs))


def _own_segments(step: SchedulerOutput) -> Ints:
    """Of each row, the segment that holds its own KV: the one alone over it whose keys reach its slot."""
    table = step.segments.table
    slots = step.slot_mapping[np.minimum(table[:, 0], step.num_scheduled_tokens - 1)]
    alone = (table[:, 1] - table[:, 0] == 1) & (table[:, 5] == 0)
    found = np.flatnonzero(alone & (table[:, 2] <= slots) & (slots < table[:, 3]))
    own = np.empty(step.num_scheduled_tokens, dtype=np.int64)
    assert len(found) == len(own), (len(found), len(own))
    own[table[found, 0]] = found
    return own
