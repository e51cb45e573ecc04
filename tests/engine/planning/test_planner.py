"""Plans asserted whole for a drawn table, then what must hold for any."""

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import ORDER, SHARING, EngineConfig, Order, Sharing
from engine.device_rates import DeviceRates
from engine.model.model_shape import ModelShape
from engine.plan import Plan, PlanSummary, PrefixNode, Shard
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan, shard_work
from engine.request import Request
from engine.sampling_params import SamplingParams
from kernels.kv_format import FLOAT32

# 7 weights a token (four projections, three of the MLP), 5 of the head, 8 bytes of KV: priced by hand.
SHAPE = ModelShape(
    num_layers=1,
    hidden_size=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=1,
    intermediate_size=1,
    vocab_size=5,
    max_model_len=100,
)
CONFIG = EngineConfig(block_size=2, kv_cache_memory=100 * 2 * 8)


def request_of(name: str, prompt: list[int], max_tokens: int = 1, adapter: str | None = None) -> Request:
    return Request(name, np.array(prompt, dtype=np.int32), SamplingParams(max_tokens=max_tokens), adapter=adapter)


def plan_of(requests: list[Request], config: EngineConfig = CONFIG, shard_seconds: float = 1e9) -> Plan:
    return make_plan(requests, config, CostModel(SHAPE, FLOAT32, DeviceRates(1.0, 1.0)), shard_seconds=shard_seconds)


# Document A = [1, 1, 1] has rows a0 and a1, document B = [2, 2] rows b0, b1 and the bare document b.
REQUESTS = [
    request_of("b0", [2, 2, 7], 2),
    request_of("a0", [1, 1, 1, 7], 3),
    request_of("b", [2, 2]),
    request_of("a1", [1, 1, 1, 8], 4),
    request_of("b1", [2, 2, 8]),
]


def test_drawn_plan() -> None:
    plan = plan_of(REQUESTS)
    # A generates 7 for 5 prompt tokens, B 4 for 4; b ends at the inner node and so runs before the rows.
    assert tuple(plan.nodes) == (
        PrefixNode(node_id=0, parent=-1, start=0, end=3, num_requests=2),
        PrefixNode(node_id=1, parent=0, start=3, end=4, num_requests=1),
        PrefixNode(node_id=2, parent=0, start=3, end=4, num_requests=1),
        PrefixNode(node_id=3, parent=-1, start=0, end=2, num_requests=3),
        PrefixNode(node_id=4, parent=3, start=2, end=3, num_requests=1),
        PrefixNode(node_id=5, parent=3, start=2, end=3, num_requests=1),
    )
    assert plan.order.tolist() == [3, 1, 2, 0, 4]
    assert plan.node_of.tolist() == [4, 2, 3, 1, 5]


def test_drawn_summary() -> None:
    tokens, head_rows = 9 + (2 + 3 + 1), 5 + (2 + 3 + 1)
    prompt_keys = (1 + 2 + 3) + 4 + 4 + (1 + 2) + 3 + 3
    decode_keys = (5 + 6 + 7) + (5 + 6) + 4
    assert plan_of(REQUESTS).summary == PlanSummary(
        requests=5,
        groups=2,
        prompt_tokens=16,
        computed_tokens=9,
        ideal_tokens=9,
        label_tokens=0,
        max_decode_tokens=11,
        # A: 2 blocks and its rows' 4 and 3 tokens; B: one block and b0's 2 tokens, b1 being scored in one step.
        peak_kv_bytes=(2 + 2 + 2 + 1 + 1) * 2 * 8,
        kv_cache_memory=1600,
        expected_seconds=2 * 7 * tokens + 2 * 5 * head_rows + 4 * (prompt_keys + decode_keys),
        decode_seconds=(2 * 7 + 2 * 5) * (2 + 3 + 1) + 4 * decode_keys,
    )


def test_label_tokens_are_counted_apart() -> None:
    labels = tuple(np.array(label, dtype=np.int32) for label in ([1, 2], [1, 3], [4]))
    summary = plan_of([replace(request, labels=labels) for request in REQUESTS]).summary
    assert (summary.label_tokens, summary.max_decode_tokens, summary.computed_tokens) == (5, 0, 9)


def test_no_requests() -> None:
    plan = plan_of([])
    assert (tuple(plan.nodes), plan.shards, plan.summary.expected_seconds) == ((), (), 0.0)


def test_groups_counts_shared_nodes() -> None:
    assert [plan_of(REQUESTS, replace(CONFIG, sharing=s)).summary.groups for s in ("none", "single_level")] == [0, 2]


def test_shard_work_holds_the_paths() -> None:
    plan = plan_of(REQUESTS)
    shard = Shard(0, "x", first=1, last=4, prefill_tokens=0, decode_tokens=0, expected_seconds=0.0)
    work = shard_work(plan, shard, REQUESTS)
    assert [request.request_id for request in work.requests] == ["a0", "b", "b0"]
    assert work.node_of == (2, 3, 4)
    assert [node.node_id for node in work.nodes] == [0, 2, 3, 4]


def sizes(plan: Plan) -> list[int]:
    return [shard.last - shard.first for shard in plan.shards]


def test_shards_end_between_groups_that_end_near() -> None:
    # Groups of 4, 6 and 5 equal requests; a shard is asked to hold 5 of them.
    requests = [request_of(f"{d}{row}", [d] * 20 + [row]) for d, n in ((1, 4), (2, 6), (3, 5)) for row in range(n)]
    total = plan_of(requests).summary.expected_seconds
    assert sizes(plan_of(requests, replace(CONFIG, order="fcfs"), total / 3)) == [4, 6, 5]


def test_a_large_group_is_cut_between_its_requests() -> None:
    requests = [request_of(str(row), [1, row, row, row, row]) for row in range(100)]
    plan = plan_of(requests)
    shards = plan_of(requests, shard_seconds=plan.summary.expected_seconds / 4).shards
    assert [shard.last - shard.first for shard in shards] == pytest.approx([25] * 4, abs=1)


def test_a_request_longer_than_a_shard_is_a_shard() -> None:
    assert sizes(plan_of(REQUESTS, shard_seconds=1e-9)) == [1] * 5


def test_a_shard_has_no_more_requests_than_a_process_wants_to_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between groups where one ends near the most, else with as many as it may; a row of more is a shard."""
    requests = [request_of(f"{d}{row}", [d] * 20 + [row]) for d, n in ((1, 6), (2, 5), (3, 8)) for row in range(n)]
    monkeypatch.setattr("engine.planning.planner.MAX_SHARD_REQUESTS", 7)
    assert sizes(plan_of(requests, replace(CONFIG, order="fcfs"))) == [6, 5, 7, 1]
    cost = CostModel(SHAPE, FLOAT32, DeviceRates(1.0, 1.0))
    rows = make_plan(requests, replace(CONFIG, order="fcfs"), cost, shard_seconds=1e9, row_sizes=[9, 1, 6, 3])
    assert sizes(rows) == [9, 7, 3]


def test_shard_ids_come_from_the_requests_alone() -> None:
    one = plan_of(REQUESTS)
    other = plan_of(REQUESTS[::-1], replace(CONFIG, order="fcfs"))
    assert one.shards[0].shard_id == other.shards[0].shard_id
    assert one.layout_id != other.layout_id
    assert one.layout_id == plan_of(REQUESTS).layout_id
    assert plan_of(REQUESTS[:4]).shards[0].shard_id != one.shards[0].shard_id


def test_equal_tokens_under_two_adapters_have_two_roots() -> None:
    requests = [
        request_of("x0", [1, 1, 7], adapter="x"),
        request_of("0", [1, 1, 7]),
        request_of("y0", [1, 1, 7], adapter="y"),
        request_of("x1", [1, 1, 8], adapter="x"),
        request_of("1", [1, 1, 7]),
    ]
    plan = plan_of(requests)
    assert tuple(plan.nodes) == (
        PrefixNode(node_id=0, parent=-1, start=0, end=2, num_requests=2, adapter="x"),
        PrefixNode(node_id=1, parent=0, start=2, end=3, num_requests=1, adapter="x"),
        PrefixNode(node_id=2, parent=0, start=2, end=3, num_requests=1, adapter="x"),
        PrefixNode(node_id=3, parent=-1, start=0, end=3, num_requests=2),
        PrefixNode(node_id=4, parent=-1, start=0, end=3, num_requests=1, adapter="y"),
    )
    assert plan.order.tolist() == [0, 3, 1, 4, 2]
    assert plan.node_of.tolist() == [1, 3, 4, 2, 3]
    assert (plan.summary.computed_tokens, plan.summary.ideal_tokens) == (10, 10)


def test_names_cover_the_adapter() -> None:
    """A request without one has the name that it always had: stored shards keep theirs."""
    base, other = (plan_of([request_of("a", [1], adapter=adapter)]) for adapter in (None, "x"))
    assert base.shards[0].shard_id == "27c35e6e9373877f29e562464e46497e"
    assert base.shards[0].shard_id != other.shards[0].shard_id
    assert base.layout_id != other.layout_id


prompt = st.lists(st.integers(0, 2), min_size=1, max_size=8)
tables = st.lists(st.tuples(prompt, st.integers(1, 5)), min_size=1, max_size=15)


@given(tables, st.sampled_from(SHARING), st.sampled_from(ORDER), st.floats(1, 2000))
def test_shards_cover_the_plan(
    table: list[tuple[list[int], int]], sharing: Sharing, order: Order, shard_seconds: float
) -> None:
    requests = [request_of(str(r), tokens, max_tokens) for r, (tokens, max_tokens) in enumerate(table)]
    plan = plan_of(requests, replace(CONFIG, sharing=sharing, order=order), shard_seconds)
    summary = plan.summary
    assert sorted(plan.order.tolist()) == list(range(len(requests)))
    assert [shard.first for shard in plan.shards] == [0, *(shard.last for shard in plan.shards[:-1])]
    assert plan.shards[-1].last == len(requests)
    assert all(shard.first < shard.last for shard in plan.shards)
    assert len({shard.shard_id for shard in plan.shards}) == len(plan.shards)
    assert sum(shard.prefill_tokens for shard in plan.shards) == summary.computed_tokens
    assert summary.computed_tokens == sum(node.end - node.start for node in plan.nodes)
    assert sum(shard.decode_tokens for shard in plan.shards) == summary.max_decode_tokens
    assert sum(shard.expected_seconds for shard in plan.shards) == pytest.approx(summary.expected_seconds)
    assert summary.ideal_tokens <= summary.computed_tokens <= summary.prompt_tokens
    assert summary.peak_kv_bytes <= summary.kv_cache_memory
    for shard in plan.shards:
        work = shard_work(plan, shard, requests)
        nodes = {node.node_id: node for node in work.nodes}
        assert list(nodes) == sorted(nodes)
        for request, node_id in zip(work.requests, work.node_of, strict=True):
            assert nodes[node_id].end == len(request.prompt_token_ids)
            while node_id >= 0:
                node_id = nodes[node_id].parent


ADAPTERS = (None, "x", "y")


@given(st.lists(st.tuples(prompt, st.sampled_from(ADAPTERS)), min_size=1, max_size=15), st.sampled_from(SHARING))
def test_each_adapter_is_planned_as_if_alone(table: list[tuple[list[int], str | None]], sharing: Sharing) -> None:
    """What is least for each is what a set of its prefixes holds; what a policy computes is what it computes alone."""
    config = replace(CONFIG, sharing=sharing)
    requests = [request_of(str(r), tokens, adapter=adapter) for r, (tokens, adapter) in enumerate(table)]
    plan = plan_of(requests, config)
    ran = [requests[r].adapter for r in plan.order]
    assert len([adapter for adapter, _ in groupby(ran)]) == len(set(ran))
    ideal = 0
    for adapter in set(ran):
        prompts = [tokens for tokens, own in table if own == adapter]
        ideal += len({tuple(tokens[:depth]) for tokens in prompts for depth in range(1, len(tokens) + 1)})
        alone = plan_of([request for request in requests if request.adapter == adapter], config)
        shapes = [(node.start, node.end, node.num_requests) for node in plan.nodes if node.adapter == adapter]
        assert shapes == [(node.start, node.end, node.num_requests) for node in alone.nodes]
    assert plan.summary.ideal_tokens == ideal
    for r, node in enumerate(plan.node_of.tolist()):
        while node >= 0:
            assert plan.nodes[node].adapter == requests[r].adapter
            node = plan.nodes[node].parent
