"""Drafts against what the symbolic model says: the same texts in fewer steps, each row behind exactly its context."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.planning.planner import shard_work
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.drafts import FIRST_DRAFTS, MOST_DRAFTS, Drafter
from engine.scheduling.live_nodes import NodeState
from engine.scheduling.sampled import Sampled
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.scheduler_output import SchedulerOutput
from engine.scheduling.sequence import Sequence
from tests.engine.scheduling.test_scheduler import (
    BLOCK,
    SHAPE,
    config,
    cut,
    expected,
    looked_up,
    plan_of,
    tables,
)
from tests.engine.symbolic_model import SymbolicModel, drain


def sequence_of(prompt: list[int], text: list[int], key: int = 0, **params: Any) -> Sequence:
    asked = Request(str(key), np.array(prompt, np.int32), SamplingParams(**({"max_tokens": 40} | params)))
    node = NodeState((0, key), None, 0, asked.prompt_token_ids, 1)
    room = asked.max_tokens - 1
    return Sequence(key, (0, 0, key), asked, node, asked.max_tokens, None, token_ids=[*text], kv_room=room)


@pytest.mark.parametrize(
    ("prompt", "text", "found"),
    [
        ([1, 2, 3, 4, 5, 6, 7], [1, 2], [3, 4, 5, 6]),
        ([1, 2, 3, 9, 2, 3, 5], [2, 3], [5, 2, 3, 5]),  # the latest of equals
        ([1, 2, 3, 9, 8, 2, 3, 5], [7, 1, 2, 3], [9, 8, 2, 3]),  # a longer match before a later one
        ([8, 1, 2, 3, 4], [1, 2, 3], [4, 1, 2, 3]),
        ([4, 5], [4, 5, 4, 5], [4, 5, 4, 5]),  # of the text itself
        ([1, 2, 3, 4], [9, 2], []),  # one token alone foretells nothing
        ([5, 6, 7], [8], []),
        ([2, 2, 2], [2], [2, 2, 2, 2]),
    ],
)
def test_what_followed_the_latest_of_the_longest_matches(prompt: list[int], text: list[int], found: list[int]) -> None:
    assert FIRST_DRAFTS == 4
    assert Drafter(100).propose([sequence_of(prompt, text)], 1) == ({0: found} if found else {})


def test_drafts_fill_the_free_rows_and_what_was_right_comes_first() -> None:
    drafter = Drafter(7)
    one, two = (sequence_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [1, 2], key) for key in (0, 1))
    assert drafter.propose([one, two], 2) == {0: [3, 4, 5, 6], 1: [3]}
    one.token_ids += [9]  # nothing was right
    two.token_ids += [3, 4]  # the one draft was
    assert drafter.propose([one, two], 2) == {1: [5, 6, 7, 8, 9]}
    assert drafter.propose([one, two], 7) == {}


def test_a_text_gets_twice_the_drafts_after_right_ones_and_as_many_as_were_right_after_others() -> None:
    drafter, text = Drafter(1000), sequence_of([*range(1, 200)], [1, 2], max_tokens=300)
    limits = []
    for _ in range(5):
        (drafts,) = drafter.propose([text], 1).values()
        limits.append(len(drafts))
        text.token_ids += [*drafts, drafts[-1] + 1]
    assert limits == [4, 8, 16, 32, MOST_DRAFTS]
    (drafts,) = drafter.propose([text], 1).values()
    text.token_ids += [*drafts[:3], 777, 1, 2, 3]  # as if three steps more had run without drafts
    (drafts,) = drafter.propose([text], 1).values()
    assert drafts[:2] == [4, 5]


def test_the_last_token_is_never_a_draft() -> None:
    text = sequence_of([1, 2, 3, 4, 5, 6], [1, 2], max_tokens=5)
    assert Drafter(100).propose([text], 1) == {0: [3, 4]}


@pytest.mark.parametrize(
    "params",
    [{"repetition_penalty": 1.1}, {"bad_words": ("no",)}, {"allowed_token_ids": (1, 2)}, {"min_tokens": 3}],
)
def test_a_text_whose_tokens_change_its_logits_has_no_drafts(params: dict[str, Any]) -> None:
    assert Drafter(100).propose([sequence_of([1, 2, 3, 4], [1, 2], **params)], 1) == {}


def drained(
    requests: list[Request],
    limits: EngineConfig,
    num_blocks: int,
    draft_rows: int,
    parts_of: Callable[[SchedulerOutput], list[SchedulerOutput]] = lambda step: [step],
) -> tuple[dict[str, Any], list[SchedulerOutput]]:
    plan = plan_of(requests, limits)
    scheduler = Scheduler(limits, BlockPool(num_blocks, BLOCK), SHAPE.max_model_len, draft_rows=draft_rows)
    sequences = [s for shard in plan.shards for s in scheduler.add(shard_work(plan, shard, requests))]
    steps: list[SchedulerOutput] = []

    def kept(step: SchedulerOutput) -> list[SchedulerOutput]:
        steps.append(step)
        return parts_of(step)

    results = drain(scheduler, SymbolicModel(num_blocks * BLOCK), sequences, parts_of=kept)
    scheduler.check_integrity()
    return results, steps


@settings(max_examples=150, deadline=None)
@given(tables(), st.integers(16, 60), st.integers(1, 24), st.integers(1, 30), st.sampled_from([cut, lambda s: [s]]))
def test_texts_are_the_same_with_drafts(
    requests: list[Request], num_blocks: int, budget: int, draft_rows: int, parts_of: Any
) -> None:
    limits = config(num_blocks, max_num_batched_tokens=budget)
    results, steps = drained(requests, limits, num_blocks, draft_rows, parts_of)
    assert looked_up(results) == expected(requests)
    for step in steps:
        assert step.num_scheduled_tokens <= max(draft_rows, step.num_scheduled_tokens - step.num_draft_tokens)


def test_a_text_that_repeats_itself_takes_a_quarter_of_the_steps() -> None:
    requests = [Request("0", np.array([1, 2, 3], np.int32), SamplingParams(max_tokens=40, ignore_eos=True))]
    limits = config(40)
    plain, before = drained(requests, limits, 40, 0)
    drafted, after = drained(requests, limits, 40, 8)
    assert plain == drafted
    assert (len(before), len(after)) == (40, 10)


def test_tokens_that_followed_right_drafts_come_with_the_first() -> None:
    assert Sampled(5, finished=False).then(Sampled(6, finished=True)) == Sampled(5, finished=True, accepted=(6,))
    assert Sampled(5, finished=True, accepted=(6,)).token_ids == (5, 6)
