"""Shards on a clock: the plan's own steps, in the cost model's time; what the paper's workload reuses."""

from dataclasses import replace

import pytest

from engine.config import EngineConfig
from engine.device_rates import DeviceRates
from engine.errors import UserError
from engine.model.model_shape import ModelShape
from engine.plan import Plan
from engine.planning.cost import CostModel
from engine.planning.described_table import DescribedTable
from engine.planning.planner import make_plan, shard_work
from engine.planning.virtual_run import VirtualRun, run_virtually
from kernels.kv_format import FLOAT32

SHAPE = ModelShape(
    num_layers=1,
    hidden_size=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=1,
    intermediate_size=1,
    vocab_size=5,
    max_model_len=17_000,
)
COST = CostModel(SHAPE, FLOAT32, DeviceRates(1.0, 1.0))
KV_BYTES = 8
CONFIG = EngineConfig(block_size=16, kv_cache_memory=40_000 * KV_BYTES, max_num_batched_tokens=2048)


def run_of(table: DescribedTable, config: EngineConfig = CONFIG, cost: CostModel = COST) -> tuple[Plan, VirtualRun]:
    requests = table.requests()
    plan = make_plan(requests, config, cost, shard_seconds=1.0)
    return plan, run_virtually([shard_work(plan, shard, requests) for shard in plan.shards], config, cost)


def test_the_papers_prompts_reuse_what_it_says() -> None:
    """BatchLLM (arXiv 2412.03594): 16,000 shared and 200 own tokens, 16 prompts a prefix."""
    table = DescribedTable(groups=1, degree=16, prefix=16_000, distinct=200, output=2)
    _, run = run_of(table)
    prompt_tokens = table.rows * (table.prefix + table.distinct)
    assert run.prefill_tokens == 16_000 + 16 * 200
    assert 1 - run.prefill_tokens / prompt_tokens == pytest.approx(0.926, abs=0.0005)


def test_steps_are_the_plans() -> None:
    table = DescribedTable(groups=6, degree=4, prefix=40, distinct=9, output=5)
    config = EngineConfig(block_size=4, kv_cache_memory=400 * KV_BYTES, max_num_batched_tokens=64)
    plan, run = run_of(table, config)
    trajectory = plan.trajectory
    assert (run.steps, run.peak_kv_blocks) == (trajectory.num_steps, trajectory.peak_blocks)
    assert (run.prefill_tokens, run.decode_tokens) == (6 * (40 + 4 * 9), 24 * 4)
    assert run.decode_tokens == trajectory.decode_tokens.sum()
    assert 0 < run.kv_block_seconds < run.peak_kv_blocks * run.seconds
    assert run.refused == 0


def test_a_device_without_bandwidth_to_wait_for_takes_its_flops() -> None:
    """At one FLOP a second and no end of bytes the time is what is computed; the plan counts the same by request."""
    plan, run = run_of(DescribedTable(groups=2, degree=3, prefix=8, distinct=2, output=3))
    assert run.seconds == pytest.approx(run.flops) == pytest.approx(plan.summary.expected_seconds)


def test_a_step_waits_for_the_weights() -> None:
    slow = CostModel(SHAPE, FLOAT32, DeviceRates(1e30, 1e30, memory_bytes=2.0), weight_bytes=100.0)
    _, run = run_of(DescribedTable(groups=1, degree=1, prefix=0, distinct=4, output=1), cost=slow)
    assert (run.steps, run.seconds) == (1, 50.0)


def test_steps_take_what_was_learnt_and_answers_what_is_expected() -> None:
    table = DescribedTable(groups=1, degree=2, prefix=4, distinct=1, output=9)
    learnt = replace(COST, step_factors=(2.0, 0.0, 0.0, 0.0, 0.0))
    requests = table.requests()
    plan = make_plan(requests, CONFIG, learnt, shard_seconds=1.0)
    works = [shard_work(plan, shard, requests) for shard in plan.shards]
    lengths = {requests[0].request_id: 3, requests[1].request_id: 5}
    run = run_virtually(works, CONFIG, learnt, answer_tokens=lengths)
    # The first token comes with the prompt's step.
    assert (run.decode_tokens, run.steps, run.seconds) == (2 + 4, 5, 10.0)


def test_what_fits_nowhere_is_refused() -> None:
    _, run = run_of(DescribedTable(groups=1, degree=2, prefix=16_900, distinct=101, output=1))
    assert (run.refused, run.steps, run.seconds) == (2, 0, 0.0)


def test_a_described_table() -> None:
    table = DescribedTable.parse("groups=3,degree=2,prefix=2,distinct=2,output=7")
    assert table == DescribedTable(3, 2, 2, 2, 7)
    assert [one.prompt_token_ids.tolist() for one in table.requests()][2:4] == [[1, 1, 2, 0], [1, 1, 3, 0]]
    assert {one.max_tokens for one in table.requests()} == {7}
    assert [table.largest_share(devices).groups for devices in (1, 2, 3, 8)] == [3, 2, 1, 1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "groups=3",
        "groups=3,degree=2,prefix=2,distinct=2,output=x",
        "groups=3,degree=2,prefix=2,distinct=2,output=-1",
        "groups=3,degree=2,prefix=2,distinct=2,output=1,more=1",
        "groups=0,degree=2,prefix=2,distinct=2,output=1",
        "groups=3,groups=3,prefix=2,distinct=2,output=1",
    ],
)
def test_what_describes_no_table(text: str) -> None:
    with pytest.raises(UserError, match=r"^--table "):
        DescribedTable.parse(text)
