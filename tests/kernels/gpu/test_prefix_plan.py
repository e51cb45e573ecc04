"""Plans that outlive their step: in a captured graph, and while rows go on."""

from dataclasses import replace

import pytest
import torch

from kernels.gpu.prefix_attention import run
from kernels.gpu.prefix_plan import AttentionShape, Capacity, CapacityError, plan
from tests.kernels.cpu.attention.attention_case import Case, tensors, wanted
from tests.kernels.gpu.test_prefix_attention import CONFIG, mixed


def test_a_captured_launch_takes_later_plans() -> None:
    """Buffers and grids keep their size: programs past the end of a smaller plan do nothing."""
    shape, large, small = AttentionShape(4, 2, 16, 16), mixed(), Case(seed=5)
    prefix = small.cached(30, 0)
    small.decode(4, 30)
    small.chunk(3, 30)
    small.reads(0, prefix)
    capacity = Capacity(items=40, pieces=80, entries=60, rows=64, partials=200)
    made, buffers = None, set()
    for case in (large, small, large):
        t = tensors(case, shape, torch.float32)
        made = plan(case.segments, case.row_positions, shape, "cpu", config=CONFIG, capacity=capacity, into=made)
        buffers.add(
            (made.launches[None].indices.items.data_ptr(), made.launches[None].grid_items, made.partial_out.data_ptr())
        )
        want_out, _ = wanted(case, t, 0.2)
        out, _ = run(made, t.query, t.step_key, t.step_value, t.key_cache, t.value_cache, 0.2)
        assert float((out - want_out).abs().max()) < 1e-5
    assert len(buffers) == 1
    with pytest.raises(CapacityError, match="the plan needs"):
        plan(large.segments, large.row_positions, shape, "cpu", config=CONFIG, capacity=replace(capacity, items=2))


@pytest.mark.parametrize("window", [None, 9])
def test_a_plan_holds_while_rows_go_on(window: int | None) -> None:
    """Rows move through keys that the plan has from the start; what they have not reached is NaN."""
    shape, ahead, case = AttentionShape(4, 2, 16, 16), 6, Case()
    prefix = case.cached(30, 0)
    for own in (20, 8, 39, 7):
        case.decode(own, 30)
    case.reads(0, prefix)
    case.positions = [position - ahead for position in case.positions]
    t = tensors(case, shape, torch.float32)
    windows = (window,)
    made = plan(case.segments, case.row_positions, shape, "cpu", windows=windows, config=CONFIG, room=True, ahead=ahead)
    for moved in range(ahead + 1):
        want_out, _ = wanted(case, t, 0.2, window=window)
        caches = [cache.clone() for cache in (t.key_cache, t.value_cache)]
        for row, segment in enumerate(case.rows[:4]):
            for slot in range(segment.kv_start + case.positions[row] - segment.position + 1, segment.kv_end):
                for cache in caches:
                    cache[slot // 16, slot % 16] = torch.nan
        made.launches[window].indices.positions[:4] = torch.from_numpy(case.row_positions)
        out, _ = run(made, t.query, t.step_key, t.step_value, *caches, 0.2, window=window)
        assert float((out - want_out).abs().max()) < 1e-5, moved
        case.positions = [position + 1 for position in case.positions]
