"""A step that only decodes, made from the decode step before it: what changes from one to the next is a few numbers.

Building a step row by row costs some ten microseconds a row, as much as a GPU takes for all of it. Here a row that
goes on moves by one token, in arrays; rows that ended are left out. What joins is built anew.
"""

from collections.abc import Mapping, Set
from dataclasses import replace

import numpy as np

from engine.scheduling.reads import Reads
from engine.scheduling.scheduler_output import SchedulerOutput
from engine.scheduling.sequence import Sequence, StepCount
from kernels.segments import Ints, Segments


class DecodeRows:
    """The rows of the last decode step. `output` is that step; `next` makes the one behind it.

    A row's own segment, which ends where the row's KV is written, is drawn out to cover `ahead` more tokens as far as
    its run of blocks goes. So the segments, and what is planned from them, stay the same object for as many steps.

    The texts go together as long as each step follows from the one before: nothing is visited text by text.
    """

    def __init__(self, built: SchedulerOutput, decoding: Mapping[int, Sequence], ahead: int) -> None:
        """`built` is of all that are `decoding`, by key, and of nothing else; its tokens are not pending yet."""
        self._ahead = ahead
        self._keys = built.reads.key.copy()
        texts = [decoding[key] for key in self._keys.tolist()]
        self._run_ends = np.array([_run_end(text) for text in texts], dtype=np.int64)
        self._steps_left = np.array([text.max_tokens - text.num_output_tokens - 1 for text in texts], dtype=np.int64)
        self._own = _own_segments(built)
        self._texts = dict(decoding)
        self._steps = StepCount()
        for text in texts:
            text.together = self._steps
        self.output = replace(built, segments=self._drawn_out(built.segments, built.slot_mapping), ahead=ahead)

    def next(self, decoding: Mapping[int, Sequence]) -> SchedulerOutput | None:
        """The next step, of those that are `decoding`, with its tokens pending.

        None where it has to be built anew: a row joined, or left its run of blocks.
        """
        before = self.output
        if before.adapters is not None:  # what it loaded is there
            before = replace(before, adapters=before.adapters.for_rows(slice(None)))
        samples = np.arange(len(self._keys))
        if decoding.keys() != self._texts.keys():
            if not decoding or not decoding.keys() <= self._texts.keys():
                return None
            samples = self._without(self._texts.keys() - decoding.keys())
            before = self._of_rows(before, samples)
        slots = before.slot_mapping + 1
        if bool((slots >= self._run_ends).any()):
            return None
        ahead = before.ahead - 1
        segments = before.segments
        if ahead < 0:
            segments, ahead = self._drawn_out(segments, slots), self._ahead
        self.output = replace(
            before,
            input_ids=self._inputs(samples),
            position_ids=before.position_ids + 1,
            slot_mapping=slots,
            segments=segments,
            num_decode_tokens=len(slots),
            ahead=ahead,
        )
        self._steps.value += 1
        return self.output

    def complete(self) -> list[Sequence]:
        """The texts that are as long as they may become with the last step's tokens."""
        rows = np.flatnonzero(self._steps_left <= self._steps.value)
        return [self._texts[key] for key in self._keys[rows].tolist()]

    def close(self) -> None:
        """The texts go alone again; nothing more is made of these rows."""
        self._part(self._texts.keys())

    def _part(self, keys: Set[int]) -> None:
        for index in np.flatnonzero(np.isin(self.output.reads.key, list(keys))).tolist():
            self._texts.pop(int(self.output.reads.key[index])).go_alone(index)

    def _inputs(self, samples: Ints) -> Ints:
        """Of each row its text's last token, which the last step made as one of its `samples`."""
        if next(iter(self._texts.values())).num_pending:  # that step is in flight, for one text as for all
            return -1 - samples
        return np.array([self._texts[key].token_ids[-1] for key in self._keys.tolist()], dtype=np.int64)

    def _drawn_out(self, segments: Segments, slots: Ints) -> Segments:
        table = segments.table.copy()
        table[self._own, 3] = np.minimum(slots + 1 + self._ahead, self._run_ends)
        return Segments(table)

    def _without(self, gone: Set[int]) -> Ints:
        """The rows of the last step that are left where texts are `gone`."""
        rows = np.flatnonzero(np.isin(self._keys, list(gone), invert=True))
        self._part(gone)
        self._keys, self._run_ends, self._steps_left = self._keys[rows], self._run_ends[rows], self._steps_left[rows]
        return rows

    def _of_rows(self, before: SchedulerOutput, rows: Ints) -> SchedulerOutput:
        """The last step as if it had been of some of its rows alone."""
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
