"""Work items: every row meets each key that it may read exactly once, and no processor waits long."""

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.gpu.attention.paged_segments import paged
from kernels.gpu.attention.work_items import ItemField, TileShape, WorkItems, work_items
from kernels.segments import Segment, Segments, reach

TILE = TileShape(small=16, large=32, keys=8, heads=2)


@st.composite
def steps(draw: st.DrawFn) -> tuple[Segments, np.ndarray]:
    """Any segments over any rows: nested, apart, crossing; no slot is in two segments that share a row."""
    rows = draw(st.integers(1, 60))
    positions = np.array(draw(st.lists(st.integers(0, 90), min_size=rows, max_size=rows)), dtype=np.int64)
    made, slot = [], 0
    for _ in range(draw(st.integers(0, 9))):
        first = draw(st.integers(0, rows - 1))
        last = draw(st.integers(first + 1, rows))
        length = draw(st.integers(1, 40))
        made.append(Segment(first, last, slot, slot + length, draw(st.integers(0, 60))))
        slot += length + draw(st.integers(0, 5))
    return Segments.of(made), positions


def masked_reads(items: WorkItems, page: int, window: int) -> np.ndarray:
    """(rows, slots) how often: what the kernel makes of the items, by its own rules."""
    slots = (int(items.table.max(initial=0)) + 1) * page
    count = np.zeros((items.num_rows, slots), dtype=int)
    for row_start, rows, piece_start, piece_end, _, _ in items.items:
        for first, start, whole, end, position, in_step in items.pieces[piece_start:piece_end]:
            assert not in_step
            assert (whole - start) % TILE.keys == 0
            keys = np.arange(start, end)
            slot = items.table[first + keys // page] * page + keys % page
            far = items.positions[row_start : row_start + rows][:, None] - (position + keys)
            near = (far >= 0) & (far < window)
            assert near[:, : whole - start].all(), "an unmasked key that some row may not read"
            for row in range(rows):
                count[row_start + row, slot[near[row]]] += 1
    return count


@settings(max_examples=150)
@given(steps(), st.sampled_from([16, 32]), st.sampled_from([None, 1, 25]), st.integers(1, 60))
def test_each_key_is_read_once_by_each_row_that_may(
    step: tuple[Segments, np.ndarray], page: int, window: int | None, processors: int
) -> None:
    segments, positions = step
    items = work_items(segments, positions, page, TILE, window=window, processors=processors, head_slices=2)
    count = masked_reads(items, page, reach(window))
    want = np.zeros_like(count)
    for index in range(len(segments)):
        rows = np.arange(segments.row_start[index], segments.row_end[index])
        keys = np.arange(segments.kv_end[index] - segments.kv_start[index])
        far = positions[rows][:, None] - (segments.position[index] + keys)
        want[rows[:, None], segments.kv_start[index] + keys] += (far >= 0) & (far < (reach(window)))
    assert np.array_equal(count, want)
    # Every row ends once: written by one item itself, or merged from all partial rows that items leave for it.
    ends = np.zeros(len(positions), dtype=int)
    left: dict[int, list[int]] = {row: [] for row in range(len(positions))}
    for row_start, rows, _, _, partial, _ in items.items:
        for offset in range(rows):
            if partial < 0:
                ends[row_start + offset] += 1
            else:
                left[row_start + offset].append(int(partial + offset))
    for index, row in enumerate(items.merge_rows):
        ends[row] += 1
        merged = items.merge_partials[items.merge_starts[index] : items.merge_starts[index + 1]]
        assert sorted(merged) == sorted(left.pop(int(row)))
    assert (ends == 1).all()
    assert not any(left.values())
    assert sorted(items.merge_partials) == list(range(items.num_partials))


def finish(costs: np.ndarray, processors: int) -> float:
    """When the last processor ends, each taking the next item as it becomes free; an item's start costs a block."""
    free = [0.0] * processors
    for cost in costs:
        heapq.heappush(free, heapq.heappop(free) + float(cost) + 1)
    return max(free)


def one_segment_a_row(rows: int, length: int) -> Segments:
    return Segments.of(Segment(row, row + 1, row * length, (row + 1) * length, 0) for row in range(rows))


@pytest.mark.parametrize(
    ("segments", "rows", "latest", "working"),
    [
        # 512 blocks: 132 processors that take 4 each, as some must, are done when 128 of them are.
        (Segments.of([Segment(0, 4, 0, 32768, 0)]), 4, 5, 128),
        (one_segment_a_row(1000, 190), 1000, 32, 132),
        (one_segment_a_row(133, 2000), 133, 45, 132),
    ],
    ids=["one long prefix", "a thousand short ones", "one more than the processors"],
)
def test_no_processor_waits_long(segments: Segments, rows: int, latest: float, working: int) -> None:
    processors, slices = 132, 1
    positions = np.full(rows, 40000)
    tile = TileShape(16, 64, 64, 4)
    items = work_items(segments, positions, 16, tile, processors=processors, head_slices=slices)
    blocks = items.costs.sum()
    assert finish(items.costs, processors) <= min(latest, 1.5 * (blocks / processors) + 3)
    assert len(items.items) >= working


def test_runs_that_meet_at_blocks_are_one_segment_again() -> None:
    runs = [(0, 5, 32, 64, 0), (0, 5, 128, 140, 32), (0, 5, 143, 150, 44), (0, 4, 160, 170, 51)]
    made = paged(Segments.of(Segment(*run) for run in runs), 5, 16)
    assert made.row_end.tolist() == [5, 5, 4]
    assert (made.start.tolist(), made.end.tolist()) == ([0, 15, 0], [44, 22, 10])
    assert made.table.tolist() == [0, 2, 3, 8, 8, 9, 10]
    assert made.first.tolist() == [1, 4, 6]
    assert made.position.tolist() == [0, 29, 51]


def test_items_in_large_and_in_small_tiles_run_side_by_side() -> None:
    """One prefix of 64 blocks under 16 rows, each with 4 blocks of its own: no kind waits for the other's end."""
    segments = [Segment(0, 16, 0, 512, 0)]
    segments += [Segment(row, row + 1, 512 + 32 * row, 544 + 32 * row, 512) for row in range(16)]
    positions = np.full(16, 543, dtype=np.int64)
    items = work_items(Segments.of(segments), positions, 16, TILE, processors=16, head_slices=2)
    large = items.items[:, ItemField.IS_LARGE] == 1
    first, second = items.costs[large], items.costs[~large]
    assert (list(first), list(second)) == (sorted(first, reverse=True), sorted(second, reverse=True))
    assert (len(first), len(second)) == (8, 16)
    # All in large tiles have begun when seven tenths of the others have.
    assert "".join(".L"[is_large] for is_large in large.astype(int)) == ".L.L.L..L.L.L..L.L......"
