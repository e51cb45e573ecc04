"""Rows of several requests: what each computes, on the scheduler itself, and what a row shares within it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import SHARING
from tests.engine.planning.test_row_plans import Rows, flat
from tests.engine.scheduling.test_scheduler import config, expected, looked_up, plan_of, request, run


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


@settings(max_examples=150, deadline=None)
@given(tables(), st.sampled_from(SHARING), st.integers(1, 20), st.sampled_from([1e9, 0.3, 0.05]), st.integers(24, 60))
def test_every_request_of_a_row_reads_its_own_prompt(
    rows: Rows, sharing: str, budget: int, shard_seconds: float, blocks: int
) -> None:
    limits = config(blocks, sharing=sharing, max_num_batched_tokens=budget)
    requests, sizes = flat(rows)
    results, plan, scheduler, prefill = run(requests, limits, blocks, shard_seconds=shard_seconds, row_sizes=sizes)
    assert looked_up(results) == expected(requests)
    assert scheduler.evictions or prefill == plan.summary.computed_tokens
    assert prefill >= plan.summary.computed_tokens
    row_of = np.repeat(np.arange(len(rows)), sizes)
    held = [set(row_of[plan.order[shard.first : shard.last]].tolist()) for shard in plan.shards]
    assert sum(map(len, held)) == len(rows), "a row lies in one shard"


def test_items_share_their_query() -> None:
    """Two rows with one query of six tokens, and another that begins with two of them: a query is computed once."""
    query = [1, 2, 3, 1, 2, 3]
    rows = [
        [request("a", [*query, 4]), request("a.1", [*query, 5, 5]), request("a.2", [*query, 5, 6])],
        [request("b", [*query, 7]), request("b.1", [*query, 4])],
        [request("c", [1, 2, 9])],
    ]
    requests, sizes = flat(rows)
    plan = plan_of(requests, config(40), row_sizes=sizes)
    spans = [(plan.nodes[node].start, plan.nodes[node].end) for node in plan.node_of.tolist()]
    assert spans == [(6, 7), (6, 8), (6, 8), (6, 7), (6, 7), (2, 3)]
    parents = {plan.nodes[node].parent for node in plan.node_of.tolist()[:5]}
    assert len(parents) == 1
    assert plan.summary.prompt_tokens == sum(len(one.prompt_token_ids) for one in requests)
    # The stem of two, the rest of the query, and each prompt's end; `b.1` is not `a`, though it has its prompt.
    assert plan.summary.computed_tokens == 2 + 4 + (1 + 2 + 2) + (1 + 1) + 1
    alone = plan_of(requests, config(40, sharing="none"), row_sizes=sizes)
    assert alone.summary.computed_tokens == alone.summary.prompt_tokens


@pytest.mark.parametrize(
    ("second", "own"),
    [([1, 2], 1), ([1, 2, 3, 4], 0), ([1, 2, 3, 4, 5], 1), ([7, 8], 2)],
    ids=["begun", "equal", "longer", "other"],
)
def test_a_prompt_beside_its_rows_first(second: list[int], own: int) -> None:
    requests = [request("a", [1, 2, 3, 4]), request("b", second, labels=[[1]])]
    plan = plan_of(requests, config(40), row_sizes=[2])
    assert plan.summary.computed_tokens == 4 + own
    assert plan.order.tolist() == [0, 1]
