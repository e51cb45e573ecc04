"""Halves of a step, run one behind the other, are the step: by hand, and by a model that sees what each row reads."""

from typing import Any

import numpy as np
import pytest

from engine.scheduling.halves import halves
from engine.scheduling.reads import Reads
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.segments import Segment, Segments


def step_of(rows: int, segments: list[Segment], **given: Any) -> SchedulerOutput:
    numbers = np.arange(rows, dtype=np.int64)
    parts: dict[str, Any] = {
        "input_ids": numbers + 100,
        "position_ids": numbers,
        "slot_mapping": numbers,
        "segments": Segments.of(segments),
        "reads": Reads.samples(np.array([rows - 1]), np.array([7])),
        "num_prefill_tokens": rows,
        "num_decode_tokens": 0,
        "num_label_tokens": 0,
    }
    return SchedulerOutput(**parts | given)


def test_a_chunk_is_cut_in_the_middle_and_its_first_half_reads_nothing_of_the_second() -> None:
    parts = halves(step_of(8, [Segment(0, 8, 0, 8, 0)]))
    assert parts is not None
    first, second = parts
    assert list(first.segments) == [Segment(0, 4, 0, 4, 0)]
    assert list(second.segments) == [Segment(0, 4, 0, 8, 0)]
    assert first.input_ids.tolist() == [100, 101, 102, 103]
    assert second.position_ids.tolist() == second.slot_mapping.tolist() == [4, 5, 6, 7]
    assert not len(first.reads)
    assert [(read.row, read.key) for read in second.reads] == [(3, 7)]


def test_a_node_that_is_read_in_the_step_alone_stays_whole() -> None:
    """Two transient nodes of 3 and 5 rows: the cut is between them, and rows are counted anew behind it."""
    segments = [Segment(0, 3, 0, 3, 0, in_step=True), Segment(3, 8, 3, 8, 0, in_step=True)]
    positions = np.array([0, 1, 2, 0, 1, 2, 3, 4])
    parts = halves(step_of(8, segments, position_ids=positions, slot_mapping=np.full(8, -1)))
    assert parts is not None
    assert [list(part.segments) for part in parts] == [
        [Segment(0, 3, 0, 3, 0, in_step=True)],
        [Segment(0, 5, 0, 5, 0, in_step=True)],
    ]
    assert all(halves(part) is None for part in parts)


def test_decodes_stay_decodes() -> None:
    rows = np.arange(3)
    segments = [Segment(0, 3, 0, 4, 0), *(Segment(row, row + 1, 8 + row, 9 + row, 4) for row in range(3))]
    given: dict[str, Any] = {"position_ids": np.full(3, 4), "slot_mapping": 8 + rows, "num_decode_tokens": 3}
    parts = halves(step_of(3, segments, reads=Reads.samples(rows, rows + 5), num_prefill_tokens=0, **given))
    assert parts is not None
    assert [part.num_decode_tokens for part in parts] == [1, 2]
    assert [part.reads.key.tolist() for part in parts] == [[5], [6, 7]]
    assert list(parts[1].segments) == [Segment(0, 2, 0, 4, 0), Segment(0, 1, 9, 10, 4), Segment(1, 2, 10, 11, 4)]


@pytest.mark.parametrize("rows", [1, 2])
def test_one_row_has_no_halves(rows: int) -> None:
    assert (halves(step_of(rows, [Segment(0, rows, 0, rows, 0)])) is None) == (rows == 1)
