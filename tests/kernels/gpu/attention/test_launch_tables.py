"""Tables that outlive their step: in a captured graph, and while rows go on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels.gpu.attention import capacity as capacities
from kernels.gpu.attention.attention_shape import AttentionShape
from kernels.gpu.attention.capacity import Capacity, CapacityError
from kernels.gpu.attention.launch_tables import launch_tables
from kernels.gpu.attention.prefix_attention import DEEP_MERGE, WIDE_MERGE, merge_tile, prefix_shared_attention
from kernels.gpu.attention.room import Room
from kernels.gpu.tuning.attention_config import attention_candidates
from kernels.segments import Segment, Segments
from tests.kernels.gpu.attention.attention_case import Case, drawn_inputs, wanted
from tests.kernels.gpu.attention.test_prefix_attention import CONFIG, mixed


def test_a_captured_launch_takes_later_steps() -> None:
    """Buffers and grids keep their size: programs behind the items of a smaller step do nothing."""
    shape, large, small = AttentionShape(4, 2, 16, 16), mixed(), Case(seed=5)
    prefix = small.cached(30, 0)
    small.decode(4, 30)
    small.chunk(3, 30)
    small.reads(0, prefix)
    capacity = Capacity(items=40, pieces=80, entries=60, rows=64, partials=200)
    first = (large.segments, large.row_positions, shape, "cpu")
    tables, buffers = launch_tables(*first, config=CONFIG, capacity=capacity), set()
    for case in (large, small, large):
        inputs = drawn_inputs(case, shape, torch.float32)
        tables.refill(case.segments, case.row_positions)
        launched = tables.by_window[None]
        buffers.add((launched.items.items_ptr.data_ptr(), launched.grid_items, tables.partials.out_ptr.data_ptr()))
        want_out, _ = wanted(case, inputs, 0.2)
        out, _ = prefix_shared_attention(tables, inputs, 0.2)
        assert float((out - want_out).abs().max()) < 1e-5
    assert len(buffers) == 1
    with pytest.raises(CapacityError, match="the step needs"):
        launch_tables(*first, config=CONFIG, capacity=replace(capacity, items=2))


def test_tables_of_one_room_share_partials_and_keep_the_room_that_others_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger come first. Of steps of as many rows that take turns, none finds too little room the second time."""
    monkeypatch.setattr(capacities, "MIN_ROOM", 0)
    shape, room, long, short = AttentionShape(4, 2, 16, 16), Room(), Case(), Case()
    for case, own in ((long, 200), (short, 5)):
        prefix = case.cached(10 * own, 0)
        for _ in range(4):
            case.decode(own, 10 * own)
        case.reads(0, prefix)
    made = [
        launch_tables(case.segments, case.row_positions, shape, "cpu", config=CONFIG, room=room, processors=8)
        for case in (long, short)
    ]
    assert len({tables.partials.out_ptr.data_ptr() for tables in made}) == 1
    for case in (long, short, long):
        made[1].refill(case.segments, case.row_positions, processors=8)


@pytest.mark.parametrize("window", [None, 9])
def test_tables_hold_while_rows_go_on(window: int | None) -> None:
    """Rows move through keys that the tables have from the start; what they have not reached is NaN."""
    shape, ahead, case = AttentionShape(4, 2, 16, 16), 6, Case()
    prefix = case.cached(30, 0)
    for own in (20, 8, 39, 7):
        case.decode(own, 30)
    case.reads(0, prefix)
    case.positions = [position - ahead for position in case.positions]
    inputs = drawn_inputs(case, shape, torch.float32)
    step = (case.segments, case.row_positions, shape, "cpu")
    tables = launch_tables(*step, windows=(window,), config=CONFIG, room=Room(), ahead=ahead)
    for moved in range(ahead + 1):
        want_out, _ = wanted(case, inputs, 0.2, window=window)
        caches = [cache.clone() for cache in (inputs.key_cache, inputs.value_cache)]
        for row, segment in enumerate(case.rows[:4]):
            for slot in range(segment.kv_start + case.positions[row] - segment.position + 1, segment.kv_end):
                for cache in caches:
                    cache[slot // 16, slot % 16] = torch.nan
        tables.move_rows(torch.from_numpy(case.row_positions))
        behind = replace(inputs, key_cache=caches[0], value_cache=caches[1])
        out, _ = prefix_shared_attention(tables, behind, 0.2, window=window)
        assert float((out - want_out).abs().max()) < 1e-5, moved
        case.positions = [position + 1 for position in case.positions]


@pytest.mark.parametrize(
    ("rows", "own", "kv_heads", "programs"),
    [(1, 0, 8, 256), (1, 16, 8, 256), (1, 16, 1, 251), (1, 0, 32, 256), (2, 100, 8, 1016), (16, 100, 8, 800)],
)
def test_a_long_prefix_under_few_rows_fills_an_h100(rows: int, own: int, kv_heads: int, programs: int) -> None:
    """32,000 keys of 32 heads: 132 processors run two programs at once, of which 95 % have work from the first on.

    Programs that all fit at once end together, so that one row is cut no further than that; several rows with keys of
    their own leave lengths that more rounds even out.
    """
    segments = [Segment(0, rows, 0, 32_000, 0)]
    segments += [Segment(row, row + 1, 32_000 + 4096 * row, 32_000 + 4096 * row + own, 32_000) for row in range(rows)]
    step = Segments.of(one for one in segments if one.kv_start < one.kv_end)
    config, shape = attention_candidates("sm_90", 128)[0], AttentionShape(32, kv_heads, 128, 64)
    positions = np.full(rows, 32_000 + own - 1)
    tables = launch_tables(step, positions, shape, "cpu", config=config, processors=132).by_window[None]
    assert tables.grid_items * kv_heads * shape.slices == programs >= 0.95 * config.programs * 132
    assert tables.grid_merges == rows


def test_merges_of_many_rows_take_many_heads_at_once() -> None:
    assert [merge_tile(rows, 32, 132) for rows in (1, 32, 33, 256)] == [DEEP_MERGE, DEEP_MERGE, WIDE_MERGE, WIDE_MERGE]
