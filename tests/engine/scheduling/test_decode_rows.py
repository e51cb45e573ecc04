"""Decode steps that follow from the one before: exact numbers, and the same as steps that are built anew."""

import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from engine.config import EngineConfig
from engine.device_rates import DeviceRates
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan, shard_work
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.sampled import Sampled
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.kv_format import FLOAT32
from tests.engine.scheduling.test_scheduler import BLOCK, SHAPE, config


def started(caps: list[int], ahead: int, num_blocks: int = 40, max_rows: int = 64) -> tuple[Scheduler, SchedulerOutput]:
    """Rows of a prefix of five tokens and one of their own, which may decode `caps` tokens: their first decode step."""
    limits: EngineConfig = config(num_blocks, max_num_batched_tokens=max_rows)
    rows = [
        Request(str(i), np.array([1, 2, 3, 1, 2, 4 + i], dtype=np.int32), SamplingParams(max_tokens=cap))
        for i, cap in enumerate(caps)
    ]
    plan = make_plan(rows, limits, CostModel(SHAPE, FLOAT32, DeviceRates(1e4, 1e4)), shard_seconds=1e9)
    scheduler = Scheduler(limits, BlockPool(num_blocks, BLOCK), SHAPE.max_model_len, decode_ahead=ahead)
    scheduler.add(shard_work(plan, plan.shards[0], rows))
    prefill = scheduler.schedule()
    assert prefill is not None
    took(scheduler, prefill)
    return scheduler, step_of(scheduler)


def step_of(scheduler: Scheduler) -> SchedulerOutput:
    step = scheduler.schedule()
    assert step is not None
    return step


def took(scheduler: Scheduler, step: SchedulerOutput, ended: Any = ()) -> None:
    """Every row sampled token 3; the texts of the rows in `ended` end by it."""
    sampled = {}
    for index, key in enumerate(step.reads.key.tolist()):
        sequence = scheduler.sequences.get(key)
        if sequence is not None:
            last = len(sequence.token_ids) + 1 >= sequence.max_tokens
            sampled[key] = Sampled(3, finished=last or index in ended)
    scheduler.update(step, sampled)


def test_a_row_moves_by_one_and_its_plan_stays() -> None:
    scheduler, first = started([9, 9], ahead=3)
    took(scheduler, first)
    second = step_of(scheduler)
    assert first.position_ids.tolist() == [6, 6]
    assert second.position_ids.tolist() == [7, 7]
    assert (second.slot_mapping - first.slot_mapping).tolist() == [1, 1]
    assert second.input_ids.tolist() == [3, 3]
    assert second.segments is first.segments
    assert (first.ahead, second.ahead) == (3, 2)
    # A row's own keys end three behind its slot, the prefix where it was.
    own = [segment for segment in first.segments if segment.row_end - segment.row_start == 1]
    ends = {s.row_start: s.kv_end for s in own if s.kv_end > first.slot_mapping[s.row_start]}
    assert {row: end - int(first.slot_mapping[row]) for row, end in ends.items()} == {0: 4, 1: 4}


def test_segments_are_drawn_out_again_when_they_are_used_up() -> None:
    scheduler, step = started([20, 20], ahead=2)
    seen = [step]
    for _ in range(5):
        took(scheduler, seen[-1])
        seen.append(step_of(scheduler))
    assert [step.ahead for step in seen] == [2, 1, 0, 2, 1, 0]
    assert [a.segments is b.segments for a, b in pairwise(seen)] == [True, True, False, True, True]


def test_a_row_that_ended_is_left_out() -> None:
    scheduler, first = started([9, 9, 9], ahead=4)
    took(scheduler, first, ended=[1])
    second = step_of(scheduler)
    assert second.reads.key.tolist() == first.reads.key[[0, 2]].tolist()
    assert second.reads.row.tolist() == [0, 1]
    assert second.slot_mapping.tolist() == (first.slot_mapping[[0, 2]] + 1).tolist()
    assert int(second.segments.row_end.max()) == 2
    assert second.ahead == 3


def test_tokens_in_flight_are_named_by_their_sample() -> None:
    """A step that is scheduled while the one before runs: row i decodes from what that step's sample i becomes."""
    scheduler, first = started([9, 9], ahead=4)
    second = step_of(scheduler)
    assert first.input_ids.tolist() == [3, 3]
    assert second.input_ids.tolist() == [-1, -2]
    took(scheduler, first, ended=[0])
    third = step_of(scheduler)
    assert third.input_ids.tolist() == [-2], "the row that goes on was the second of the step in flight"
    took(scheduler, second)
    took(scheduler, third)


def test_a_text_that_is_long_enough_takes_no_row_while_its_last_token_is_in_flight() -> None:
    scheduler, first = started([2, 9], ahead=4)
    second = step_of(scheduler)
    assert (first.num_decode_tokens, second.num_decode_tokens) == (2, 1)


def test_texts_that_part_know_what_is_in_flight() -> None:
    """One row leaves at its length, one at its end; one goes on, and its counts are right with each step."""
    scheduler, first = started([9, 9, 3], ahead=4)
    texts = [scheduler.sequences[key] for key in first.reads.key.tolist()]
    short = next(row for row, text in enumerate(texts) if text.max_tokens == 3)
    ended, goes_on = [row for row in range(3) if row != short]
    second = step_of(scheduler)
    assert [(text.num_pending, text.num_output_tokens) for text in texts] == [(2, 3)] * 3
    took(scheduler, first, ended=[ended])
    third = step_of(scheduler)
    assert third.input_ids.tolist() == [-1 - goes_on]
    assert (texts[short].num_pending, texts[short].num_output_tokens) == (1, 3)
    assert (texts[goes_on].num_pending, texts[goes_on].num_output_tokens) == (2, 4)
    took(scheduler, second)
    took(scheduler, third)
    assert (texts[goes_on].num_pending, texts[goes_on].token_ids) == (0, [3] * 4)
    assert step_of(scheduler).input_ids.tolist() == [3]


def calls_of_a_step(num_rows: int, *, one_ends: bool) -> int:
    """Calls, of Python's functions and of C's, by which a step is scheduled that follows from one in flight."""
    scheduler, first = started([9] * num_rows, ahead=8, num_blocks=8 * num_rows, max_rows=1024)
    second = step_of(scheduler)
    took(scheduler, first, ended=[1] if one_ends else [])
    calls = 0

    def note(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        third = scheduler.schedule()
    finally:
        sys.setprofile(None)
    assert third is not None
    assert third.num_decode_tokens == second.num_decode_tokens - one_ends == num_rows - one_ends
    return calls


@pytest.mark.parametrize("one_ends", [False, True])
def test_a_step_that_follows_visits_no_row(one_ends: bool) -> None:
    assert calls_of_a_step(64, one_ends=one_ends) == calls_of_a_step(512, one_ends=one_ends) < 300
