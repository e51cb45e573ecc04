"""Rows of several requests: one place in the plan, by the first; what the others share, and what each step runs."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.plan import Plan
from engine.planning.planner import shard_work
from engine.planning.rows import row_starts
from engine.request import Request
from tests.engine.planning.test_simulator import (
    config_of,
    configs,
    label_sets,
    plan_of,
    prompts,
    request_of,
    scheduled,
    steps_of,
)

Rows = list[list[Request]]


def flat(rows: Rows) -> tuple[list[Request], list[int]]:
    return [request for row in rows for request in row], [len(row) for row in rows]


def planned(rows: Rows, config: EngineConfig, shard_seconds: float = 1e9) -> Plan:
    requests, sizes = flat(rows)
    return plan_of(requests, config, shard_seconds, sizes)


def test_copies_share_their_prompt_and_other_prompts_share_nothing() -> None:
    """Two rows below `1 2`: one of three texts, one with a window of other tokens, and one that is alone."""
    rows = [
        [request_of([1, 2, 3], 4, name=name) for name in "abc"],
        [request_of([1, 2, 0], name="first"), request_of([3, 3, 1, 2], name="window")],
        [request_of([2], name="alone")],
    ]
    plan = planned(rows, config_of(40))
    nodes = [(node.parent, node.start, node.end, node.num_requests) for node in plan.nodes]
    assert nodes == [(-1, 0, 2, 4), (0, 2, 3, 3), (0, 2, 3, 1), (-1, 0, 4, 1), (-1, 0, 1, 1)]
    assert plan.order.tolist() == [0, 1, 2, 3, 4, 5]
    assert plan.node_of.tolist() == [1, 1, 1, 2, 3, 4]
    summary = plan.summary
    assert (summary.requests, summary.prompt_tokens, summary.computed_tokens, summary.ideal_tokens) == (6, 11, 9, 9)


def test_a_row_alone_is_as_before() -> None:
    requests = [request_of([1, 2, row], 3) for row in range(3)]
    before, after = plan_of(requests, config_of(40)), planned([[request] for request in requests], config_of(40))
    assert (before.layout_id, before.shards, [*before.nodes]) == (after.layout_id, after.shards, [*after.nodes])


def test_sizes_are_of_all_requests() -> None:
    assert row_starts(np.array([2, 1, 3]), 6).tolist() == [0, 2, 3]
    assert row_starts(None, 3).tolist() == [0, 1, 2]
    with pytest.raises(AssertionError):
        row_starts(np.array([2, 1]), 4)
    with pytest.raises(AssertionError):
        row_starts(np.array([2, 0, 1]), 3)


@st.composite
def tables(draw: st.DrawFn) -> Rows:
    """Rows of copies, of other prompts, of both and of one request, some of whose first prompts are equal."""
    own = st.tuples(prompts, st.integers(1, 5), st.none() | label_sets)
    heads = draw(st.lists(own, min_size=1, max_size=8))
    heads += draw(st.lists(st.sampled_from(heads), max_size=4))
    rows = []
    for row, head in enumerate(heads):
        others = draw(st.lists(st.one_of(st.just(head), own), max_size=3))
        rows.append([request_of(*one, f"{row}.{place}") for place, one in enumerate([head, *others])])
    return rows


@settings(max_examples=50, deadline=None)
@given(tables(), configs(), st.sampled_from([1e9, 100.0]))
def test_every_row_lies_whole_in_one_shard(rows: Rows, config: EngineConfig, shard_seconds: float) -> None:
    requests, sizes = flat(rows)
    plan = planned(rows, config, shard_seconds)
    assert sorted(plan.order.tolist()) == list(range(len(requests)))
    row_of = np.repeat(np.arange(len(rows)), sizes)
    seen: list[int] = []
    for shard in plan.shards:
        chosen = plan.order[shard.first : shard.last]
        own = list(dict.fromkeys(row_of[chosen].tolist()))
        assert [request for row in own for request in np.flatnonzero(row_of == row).tolist()] == chosen.tolist()
        seen += own
        work = shard_work(plan, shard, requests)
        nodes = {node.node_id: node for node in work.nodes}
        for request, node_id in zip(work.requests, work.node_of, strict=True):
            assert nodes[node_id].end == len(request.prompt_token_ids)
    assert sorted(seen) == list(range(len(rows)))
    assert sum(shard.prefill_tokens for shard in plan.shards) == plan.summary.computed_tokens
    assert plan.summary.computed_tokens == sum(node.end - node.start for node in plan.nodes)
    assert plan.summary.ideal_tokens <= plan.summary.computed_tokens <= plan.summary.prompt_tokens


@settings(max_examples=50, deadline=None)
@given(tables(), configs(), st.sampled_from([1e9, 100.0]))
def test_simulated_steps_are_the_schedulers(rows: Rows, config: EngineConfig, shard_seconds: float) -> None:
    requests, sizes = flat(rows)
    run = scheduled(requests, config, shard_seconds, row_sizes=sizes)
    assume(not run.refused and not run.evictions)
    trajectory = planned(rows, config, shard_seconds).trajectory
    assert steps_of(trajectory) == run.steps
    assert trajectory.peak_blocks == run.peak_blocks
