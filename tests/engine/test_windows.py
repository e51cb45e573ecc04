"""What rows read within a window, counted position by position, for steps that the scheduler makes."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import windows
from engine.block_pool import BlockPool
from engine.planner import shard_work
from engine.scheduler import Sampled, Scheduler
from engine.scheduler_output import KVSegment, SchedulerOutput
from engine.windows import Reads, StepReads
from tests.engine.test_scheduler import BLOCK, SHAPE, config, plan_of, tables

NUM_BLOCKS = 60


def seen(step: SchedulerOutput, reads: Reads) -> list[Counter[int]]:
    """Of each row: how often it reads each position, itself included."""
    positions = step.position_ids.tolist()
    counts: list[Counter[int]] = [Counter() for _ in positions]
    for start, end in reads.causal:
        for row in range(start, end):
            counts[row].update(positions[start : row + 1])
    for start, end, mask in reads.labels:
        for row in range(start, end):
            counts[row].update(positions[start + i] for i in torch.nonzero(mask[row - start] == 0)[:, 0].tolist())
    for segment, (kv_start, kv_end) in zip(step.own, reads.own.t().tolist(), strict=True):
        position = positions[segment.row_start]
        counts[segment.row_start].update(range(position - (kv_end - kv_start) + 1, position + 1))
    for segment, segment_mask in reads.context:
        keys = range(segment.position, segment.position + segment.kv_end - segment.kv_start)
        assert len(keys) > 0
        for row in range(segment.row_start, segment.row_end):
            reading = [True] * len(keys)
            if segment_mask is not None:
                reading = (segment_mask[row - segment.row_start] == 0).tolist()
            counts[row].update(key for key, read in zip(keys, reading, strict=True) if read)
    return counts


@settings(max_examples=100, deadline=None)
@given(tables(), st.sampled_from(["multi_level", "single_level", "none"]), st.integers(1, 24), st.integers(1, 12))
def test_every_row_reads_its_window_and_each_key_once(
    requests: list[Any], sharing: str, batched_tokens: int, window: int
) -> None:
    limits = config(NUM_BLOCKS, sharing=sharing, max_num_batched_tokens=batched_tokens)
    plan = plan_of(requests, limits)
    scheduler = Scheduler(limits, BlockPool(NUM_BLOCKS, BLOCK), SHAPE.max_model_len)
    sequences = [s for shard in plan.shards for s in scheduler.add(shard_work(plan, shard, requests))]
    live = {sequence.key: sequence for sequence in sequences}
    gap = windows.MIN_GAP
    windows.MIN_GAP = 1
    try:
        while scheduler.has_work():
            step = scheduler.schedule()
            reads = StepReads(step, torch.float32, "cpu")
            every, near = seen(step, reads.everything), seen(step, reads.within(window))
            for position, full, within in zip(step.position_ids.tolist(), every, near, strict=True):
                assert full == Counter(range(position + 1))
                assert within == Counter(range(max(position - window + 1, 0), position + 1))
            last = {key: live[key].max_tokens == len(live[key].token_ids) + 1 for key in (r.key for r in step.samples)}
            scheduler.update(step, {key: Sampled(1, finished=is_last) for key, is_last in last.items()})
    finally:
        windows.MIN_GAP = gap


def rows_below(positions: list[int], segment: KVSegment) -> SchedulerOutput:
    """Decode rows at `positions`, each with its own key alone, below one shared segment."""
    ids = np.array(positions, dtype=np.int64)
    own = tuple(KVSegment(row, row + 1, 500 + row, 501 + row, at) for row, at in enumerate(positions))
    return SchedulerOutput(ids, ids, (), (), (), own, (segment,), (), (), 0, len(positions), 0)


@pytest.mark.parametrize(
    ("window", "parts"),
    [
        pytest.param(None, [(0, 3, 0, 100, False)], id="no window"),
        pytest.param(0, [(0, 3, 0, 100, False)], id="a window of 0 is none"),
        pytest.param(1000, [(0, 3, 0, 100, False)], id="all rows read all"),
        pytest.param(105, [(0, 3, 0, 100, False)], id="exactly all"),
        pytest.param(104, [(0, 3, 0, 100, True)], id="one row lacks one key"),
        pytest.param(10, [(0, 3, 91, 100, True)], id="the rows read a tail"),
        pytest.param(3, [(0, 1, 98, 100, False)], id="only the first row reads"),
        pytest.param(1, [], id="no row reads"),
    ],
)
def test_a_shared_segment_is_trimmed_or_skipped(window: int | None, parts: list[tuple[Any, ...]]) -> None:
    step = rows_below([100, 102, 104], KVSegment(0, 3, 0, 100, 0))
    reads = StepReads(step, torch.float32, "cpu").within(window)
    got = [(s.row_start, s.row_end, s.kv_start, s.kv_end, mask is not None) for s, mask in reads.context]
    assert got == parts


def test_a_window_is_worked_out_once_a_step() -> None:
    reads = StepReads(rows_below([100], KVSegment(0, 1, 0, 100, 0)), torch.float32, "cpu")
    assert reads.within(7) is reads.within(7)
    assert reads.within(101) is reads.everything
