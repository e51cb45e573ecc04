from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import SHARING, EngineConfig
from engine.device_rates import DeviceRates
from engine.model.model_shape import ModelShape
from engine.plan import Plan
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan, shard_work
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.halves import halves
from engine.scheduling.sampled import Sampled
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.kv_format import FLOAT32
from tests.engine.symbolic_model import SymbolicModel, drain

SHAPE = ModelShape(1, 8, 1, 1, 8, 8, 16, max_model_len=64)
BLOCK = 4


def request(name: str, prompt: list[int], max_tokens: int = 1, labels: list[list[int]] | None = None) -> Request:
    return Request(
        name,
        np.array(prompt, dtype=np.int32),
        SamplingParams(max_tokens=max_tokens),
        None if labels is None else tuple(np.array(label, dtype=np.int32) for label in labels),
    )


def plan_of(requests: list[Request], config: EngineConfig, shard_seconds: float = 1e9, **given: Any) -> Plan:
    cost = CostModel(SHAPE, FLOAT32, DeviceRates(1e4, 1e4))
    return make_plan(requests, config, cost, shard_seconds=shard_seconds, **given)


def config(num_blocks: int, **changes: Any) -> EngineConfig:
    memory = num_blocks * BLOCK * SHAPE.kv_bytes_per_token(FLOAT32)
    defaults: dict[str, Any] = {"block_size": BLOCK, "kv_cache_memory": memory, "max_num_batched_tokens": 8}
    return EngineConfig(**(defaults | changes))


def run(
    requests: list[Request],
    limits: EngineConfig,
    num_blocks: int,
    shard_order: Any = None,
    shard_seconds: float = 1e9,
    in_flight: int = 0,
    decode_ahead: int = 0,
    row_sizes: list[int] | None = None,
    **given: Any,
) -> tuple[dict[str, Any], Plan, Scheduler, int]:
    """The results, the plan, the scheduler when all is done, and the prefill tokens that it computed."""
    plan = plan_of(requests, limits, shard_seconds, row_sizes=row_sizes)
    pool = BlockPool(num_blocks, BLOCK)
    scheduler = Scheduler(limits, pool, SHAPE.max_model_len, decode_ahead=decode_ahead)
    model = SymbolicModel(num_blocks * BLOCK)
    shards = list(plan.shards)
    if shard_order is not None:
        shard_order.shuffle(shards)
    sequences = [s for shard in shards for s in scheduler.add(shard_work(plan, shard, requests))]
    computed = 0
    schedule = scheduler.schedule

    def counting() -> Any:
        nonlocal computed
        step = schedule()
        computed += step.num_prefill_tokens if step is not None else 0
        return step

    scheduler.schedule = counting  # type: ignore[method-assign]
    results = drain(scheduler, model, sequences, in_flight, **given)
    scheduler.check_integrity()
    return results, plan, scheduler, computed


def expected(requests: list[Request]) -> dict[str, Any]:
    model = SymbolicModel(0)
    results: dict[str, Any] = {}
    for r in requests:
        prompt = r.prompt_token_ids.tolist()
        if r.labels is not None:
            results[r.request_id] = [label.tolist() for label in r.labels]
            continue
        tokens: list[int] = []
        while len(tokens) < min(r.max_tokens, SHAPE.max_model_len - len(prompt)) and (not tokens or tokens[-1] != 0):
            tokens.append(model.next_token([*prompt, *tokens]))
        results[r.request_id] = tokens
    return results


def looked_up(results: dict[str, Any]) -> dict[str, Any]:
    """Label results as label tokens; where they were looked up, `drain` has checked."""
    return {
        name: [value[label] for label in sorted(value)] if isinstance(value, dict) else value
        for name, value in results.items()
    }


prompts = st.lists(st.integers(1, 3), min_size=1, max_size=20)
labels = st.none() | st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=4), min_size=1, max_size=4)


def cut(step: SchedulerOutput) -> list[SchedulerOutput]:
    """In two where that can be, as for a device that lacks memory."""
    return [*(halves(step) or (step,))]


@st.composite
def tables(draw: st.DrawFn) -> list[Request]:
    stems = draw(st.lists(prompts, min_size=1, max_size=4))
    rows = draw(
        st.lists(st.tuples(st.sampled_from(stems), prompts, st.integers(1, 9), labels), min_size=1, max_size=14)
    )
    return [request(str(i), stem + tail, cap, choice) for i, (stem, tail, cap, choice) in enumerate(rows)]


@settings(max_examples=150, deadline=None)
@given(
    tables(),
    st.sampled_from(SHARING),
    st.sampled_from(["fcfs", "ratio"]),
    st.integers(16, 60),
    st.integers(1, 24),
    st.sampled_from([1e9, 0.5]),
    st.integers(0, 1),
    st.sampled_from([0, 1, 5]),
)
def test_every_row_sees_its_context_and_nothing_is_computed_twice(
    requests: list[Request],
    sharing: Any,
    order: Any,
    num_blocks: int,
    budget: int,
    shard_seconds: float,
    in_flight: int,
    decode_ahead: int,
) -> None:
    limits = config(num_blocks, sharing=sharing, order=order, max_num_batched_tokens=budget)
    results, plan, scheduler, computed = run(requests, limits, num_blocks, None, shard_seconds, in_flight, decode_ahead)
    assert looked_up(results) == expected(requests)
    assert computed == plan.summary.computed_tokens
    assert scheduler.evictions == 0
    assert scheduler.pool.peak_used <= num_blocks


@settings(max_examples=60, deadline=None)
@given(tables(), st.randoms(use_true_random=False), st.integers(16, 30))
def test_shards_out_of_order_still_end_right(requests: list[Request], random: Any, num_blocks: int) -> None:
    results, *_ = run(requests, config(num_blocks), num_blocks, random, 0.2, in_flight=num_blocks % 2)
    assert looked_up(results) == expected(requests)


@settings(max_examples=100, deadline=None)
@given(tables(), st.randoms(use_true_random=False), st.integers(16, 60), st.integers(1, 24), st.sampled_from([0, 5]))
def test_steps_may_run_in_parts(
    requests: list[Request], random: Any, num_blocks: int, budget: int, decode_ahead: int
) -> None:
    """However often they are halved: for a device whose memory does not suffice for a whole one."""

    def parts_of(step: SchedulerOutput) -> list[SchedulerOutput]:
        parts = halves(step) if random.random() < 0.7 else None
        return [step] if parts is None else [smaller for part in parts for smaller in parts_of(part)]

    limits = config(num_blocks, max_num_batched_tokens=budget)
    results, *_ = run(requests, limits, num_blocks, None, 1e9, 1, decode_ahead, parts_of=parts_of)
    assert looked_up(results) == expected(requests)


def test_a_step_fills_its_budget_with_prefill_behind_the_decodes() -> None:
    requests = [request(name, [1, 2, 3, 1, 2, last], max_tokens=4) for name, last in (("a", 1), ("b", 2))]
    requests.append(request("c", [3] * 12, max_tokens=4))
    limits = config(40, order="fcfs")
    plan = plan_of(requests, limits)
    scheduler = Scheduler(limits, BlockPool(40, BLOCK), 64)
    scheduler.add(shard_work(plan, plan.shards[0], requests))
    model = SymbolicModel(160)
    shape = []
    while scheduler.has_work():
        step = scheduler.schedule()
        model.run(step)
        shape.append((step.num_prefill_tokens, step.num_decode_tokens))
        keys = step.reads.key.tolist()
        sampled = {key: Sampled(1, len(scheduler.sequences[key].token_ids) == 3) for key in keys}
        scheduler.update(step, sampled)
    # prefix 5, a 1, b 1 and one token of c; then c's other 11 beside two decodes a step.
    assert shape == [(8, 0), (6, 2), (5, 2), (0, 3), (0, 1), (0, 1)]


def test_a_request_that_fits_nowhere_is_finished_at_once_and_the_others_run() -> None:
    requests = [request("huge", [1] * 60, max_tokens=4), request("fine", [2] * 5, max_tokens=2)]
    limits = config(4)
    plan = plan_of(requests, limits)
    scheduler = Scheduler(limits, BlockPool(4, BLOCK), 64)
    sequences = scheduler.add(shard_work(plan, plan.shards[0], requests))
    assert {s.request.request_id: s.finished for s in sequences} == {"huge": True, "fine": False}
    assert drain(scheduler, SymbolicModel(16), sequences) == {"fine": expected(requests)["fine"]}
    scheduler.check_integrity()


def test_one_token_rows_take_no_block_of_their_own() -> None:
    stem = [1, 2, 3, 1, 2, 3, 1, 2]
    requests = [request(str(i), [*stem, 3, i + 4], labels=[[1], [2, 3]]) for i in range(6)]
    results, _, scheduler, _ = run(requests, config(10), 10)
    assert scheduler.pool.peak_used == 3  # the stem's 9 tokens alone
    assert looked_up(results) == expected(requests)


@pytest.mark.parametrize("admission", ["memory", "count"])
def test_tight_memory_makes_groups_wait(admission: Any) -> None:
    requests = [request(f"{g}{i}", [g] * 12 + [i], max_tokens=8) for g in (1, 2, 3) for i in (1, 2, 3)]
    results, plan, scheduler, computed = run(requests, config(7, admission=admission), 7)
    assert results == expected(requests)
    assert computed == plan.summary.computed_tokens
    assert scheduler.pool.peak_used <= 7


def test_equal_prompts_under_two_adapters_are_computed_apart() -> None:
    prompt = [1, 2, 3, 1]
    requests = [replace(request(name or "base", prompt), adapter=name) for name in (None, "x", "x2")]
    requests.append(replace(request("again", prompt), adapter="x"))
    results, plan, _, computed = run(requests, config(10), 10)
    assert computed == plan.summary.computed_tokens == 3 * len(prompt)
    assert results == expected(requests)


def test_a_node_of_another_adapter_is_not_entered() -> None:
    requests = [request("a", [1, 2, 3])]
    plan = plan_of(requests, config(10))
    work = shard_work(plan, plan.shards[0], requests)
    with pytest.raises(AssertionError, match="'x'"):
        Scheduler(config(10), BlockPool(10, BLOCK), 64).add(
            replace(work, requests=(replace(requests[0], adapter="x"),))
        )
