"""Cuts a step in two that come to the same, one behind the other: for a device that lacks the memory for both."""

from dataclasses import replace

import numpy as np

from engine.scheduling.reads import Reads
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.segments import Ints, Segments


def halves(step: SchedulerOutput) -> tuple[SchedulerOutput, SchedulerOutput] | None:
    """The rows before and behind the cut nearest to the middle; None where no cut leaves every row what it reads.

    A row reads the cache and rows before it. What it reads of the step itself, where no cache keeps it, has to stay in
    its half: a transient node with its label rows is never cut.
    """
    rows = step.num_scheduled_tokens
    can_cut = np.ones(rows + 1, dtype=np.bool_)
    can_cut[[0, rows]] = False
    table = step.segments.table
    for row_end, kv_start in table[step.segments.in_step][:, [1, 2]].tolist():
        can_cut[kv_start + 1 : row_end] = False
    cuts = np.flatnonzero(can_cut)
    if not len(cuts):
        return None
    cut = int(cuts[np.abs(cuts - rows / 2).argmin()])
    return _part(step, 0, cut), _part(step, cut, rows)


def _part(step: SchedulerOutput, first: int, last: int) -> SchedulerOutput:
    """Rows `[first, last)`, and what is read of them; SAMPLE reads stay in their order."""
    positions = step.position_ids[first:last]
    reads = step.reads.table[(first <= step.reads.row) & (step.reads.row < last)].copy()
    reads[:, 0] -= first
    decodes = step.num_decode_tokens == step.num_scheduled_tokens
    return replace(
        step,
        input_ids=step.input_ids[first:last],
        position_ids=positions,
        slot_mapping=step.slot_mapping[first:last],
        segments=_segments(step, np.arange(first, last), positions),
        reads=Reads(reads),
        num_prefill_tokens=0 if decodes else last - first,
        num_decode_tokens=last - first if decodes else 0,
        num_label_tokens=0,
        adapters=None if step.adapters is None else step.adapters.for_rows(slice(first, last), changes=first == 0),
    )


def _segments(step: SchedulerOutput, rows: Ints, positions: Ints) -> Segments:
    """What `rows` read, without keys behind the last of them: those may be written by the other half."""
    table = step.segments.for_rows(rows).table.copy()
    table[table[:, 5] == 1, 2:4] -= rows[0]
    furthest = np.array([positions[start:end].max() for start, end in table[:, :2].tolist()], dtype=np.int64)
    if not step.ahead:
        table[:, 3] = np.minimum(table[:, 3], table[:, 2] + furthest - table[:, 4] + 1)
    return Segments(np.ascontiguousarray(table[table[:, 2] < table[:, 3]]))
