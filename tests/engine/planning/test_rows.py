"""Rows of several requests: what each computes, on the scheduler itself, and what a row shares within it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import SHARING, EngineConfig
from engine.device_rates import DeviceRates
from engine.plan import Plan
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan, shard_work
from engine.request import Request
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.scheduler import Scheduler
from kernels.kv_format import FLOAT32
from tests.engine.scheduling.test_scheduler import BLOCK, SHAPE, config, expected, looked_up, request
from tests.engine.symbolic_model import SymbolicModel, drain

Rows = list[list[Request]]


@st.composite
def tables(draw: st.DrawFn) -> Rows:
    """Rows whose prompts are a row's first again, begin as it does, or have nothing in common with it."""
    stems = draw(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=8), min_size=1, max_size=3))
    tails = st.lists(st.integers(1, 3), max_size=5)
    kinds = st.sampled_from([None, [[1], [2, 3]]])
    rows = []
    for row in range(draw(st.integers(1, 6))):
        stem, kind = draw(st.sampled_from(stems)), draw(kinds)
        prompts = [draw(st.sampled_from(stems + [stem] * 2)) + draw(tails) for _ in range(draw(st.integers(1, 4)))]
        prompts += prompts[: draw(st.integers(0, 1))]
        rows.append([request(f"{row}.{i}", one, draw(st.integers(1, 3)), kind) for i, one in enumerate(prompts)])
    return rows


def plan_of(rows: Rows, limits: EngineConfig, shard_seconds: float = 1e9) -> tuple[Plan, list[Request]]:
    requests = [one for row in rows for one in row]
    cost = CostModel(SHAPE, FLOAT32, DeviceRates(1e4, 1e4))
    sizes = [len(row) for row in rows]
    return make_plan(requests, limits, cost, shard_seconds=shard_seconds, row_sizes=sizes), requests


@settings(max_examples=150, deadline=None)
@given(tables(), st.sampled_from(SHARING), st.integers(1, 20), st.sampled_from([1e9, 0.3, 0.05]), st.integers(24, 60))
def test_every_request_of_a_row_reads_its_own_prompt(
    rows: Rows, sharing: str, budget: int, shard_seconds: float, blocks: int
) -> None:
    limits = config(blocks, sharing=sharing, max_num_batched_tokens=budget)
    plan, requests = plan_of(rows, limits, shard_seconds)
    scheduler = Scheduler(limits, BlockPool(blocks, BLOCK), SHAPE.max_model_len)
    model = SymbolicModel(blocks * BLOCK)
    sequences = [one for shard in plan.shards for one in scheduler.add(shard_work(plan, shard, requests))]
    prefill = 0
    schedule = scheduler.schedule

    def counting() -> object:
        nonlocal prefill
        step = schedule()
        prefill += step.num_prefill_tokens if step is not None else 0
        return step

    scheduler.schedule = counting  # type: ignore[method-assign, assignment]
    assert looked_up(drain(scheduler, model, sequences)) == expected(requests)
    scheduler.check_integrity()
    assert scheduler.evictions or prefill == plan.summary.computed_tokens
    assert prefill >= plan.summary.computed_tokens
    # A row lies in one shard, and its requests follow each other.
    bounds = [set(plan.order[shard.first : shard.last].tolist()) for shard in plan.shards]
    first = 0
    for row in rows:
        own = set(range(first, first + len(row)))
        assert any(own <= held for held in bounds)
        first += len(row)


def test_items_share_their_query() -> None:
    """Two rows with one query of six tokens, and another that begins with two of them: a query is computed once."""
    query = [1, 2, 3, 1, 2, 3]
    rows = [
        [request("a", [*query, 4]), request("a.1", [*query, 5, 5]), request("a.2", [*query, 5, 6])],
        [request("b", [*query, 7]), request("b.1", [*query, 4])],
        [request("c", [1, 2, 9])],
    ]
    plan, requests = plan_of(rows, config(40))
    spans = [(plan.nodes[node].start, plan.nodes[node].end) for node in plan.node_of.tolist()]
    assert spans == [(6, 7), (6, 8), (6, 8), (6, 7), (6, 7), (2, 3)]
    parents = {plan.nodes[node].parent for node in plan.node_of.tolist()[:5]}
    assert len(parents) == 1
    assert plan.summary.prompt_tokens == sum(len(one.prompt_token_ids) for one in requests)
    # The stem of two, the rest of the query, and each prompt's end; `b.1` is not `a`, though it has its prompt.
    assert plan.summary.computed_tokens == 2 + 4 + (1 + 2 + 2) + (1 + 1) + 1
    alone, _ = plan_of(rows, config(40, sharing="none"))
    assert alone.summary.computed_tokens == alone.summary.prompt_tokens


@pytest.mark.parametrize(
    "second", [[1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5], [7, 8]], ids=["begun", "equal", "longer", "other"]
)
def test_a_prompt_beside_its_rows_first(second: list[int]) -> None:
    rows = [[request("a", [1, 2, 3, 4]), request("b", second, labels=[[1]])]]
    plan, _ = plan_of(rows, config(40))
    own = {"begun": 1, "equal": 0, "longer": 1, "other": 2}
    name = {2: "begun" if second[0] == 1 else "other", 4: "equal", 5: "longer"}[len(second)]
    assert plan.summary.computed_tokens == 4 + own[name]
    assert np.array_equal(plan.order, [0, 1])
