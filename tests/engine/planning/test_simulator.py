"""The simulated steps: by hand, and step for step those of the scheduler itself."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.config import ADMISSION, ORDER, SHARING, EngineConfig
from engine.device_rates import DeviceRates
from engine.model.model_shape import ModelShape, num_kv_blocks
from engine.plan import Plan, Trajectory
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan, shard_work
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.reads import ReadKind
from engine.scheduling.sampled import Sampled
from engine.scheduling.scheduler import Scheduler
from kernels.kv_format import FLOAT32

SHAPE = ModelShape(
    num_layers=1,
    hidden_size=4,
    num_heads=1,
    num_kv_heads=1,
    head_dim=1,
    intermediate_size=4,
    vocab_size=8,
    max_model_len=1000,
)
TOKEN_BYTES = SHAPE.kv_bytes_per_token(FLOAT32)
LABELS = [[1, 2], [3]]

Steps = list[tuple[int, int, int, int]]


def config_of(num_blocks: int, step_tokens: int = 512, block_size: int = 4) -> EngineConfig:
    memory = num_blocks * block_size * TOKEN_BYTES
    return EngineConfig(kv_cache_memory=memory, block_size=block_size, max_num_batched_tokens=step_tokens)


def request_of(
    prompt: list[int], max_tokens: int = 1, labels: list[list[int]] | None = None, name: object = ""
) -> Request:
    """Generates without `labels`; else each label's log-likelihood is asked for."""
    return Request(
        f"{prompt} {name}",
        np.array(prompt, dtype=np.int32),
        SamplingParams(max_tokens=max_tokens),
        None if labels is None else tuple(np.array(label, dtype=np.int32) for label in labels),
    )


def plan_of(
    requests: list[Request], config: EngineConfig, shard_seconds: float = 1e9, row_sizes: list[int] | None = None
) -> Plan:
    cost = CostModel(SHAPE, FLOAT32, DeviceRates(1.0, 1.0))
    return make_plan(requests, config, cost, shard_seconds=shard_seconds, row_sizes=row_sizes)


def predicted_blocks(requests: list[Request], config: EngineConfig) -> int:
    return plan_of(requests, config).summary.peak_kv_bytes // (TOKEN_BYTES * config.block_size)


def steps_of(trajectory: Trajectory) -> Steps:
    """(prefill, decode, label) tokens and KV blocks of each step."""
    columns = (trajectory.prefill_tokens, trajectory.decode_tokens, trajectory.label_tokens, trajectory.kv_blocks)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@dataclass(frozen=True)
class Run:
    steps: Steps
    peak_blocks: int
    refused: int
    evictions: int


def scheduled(
    requests: list[Request],
    config: EngineConfig,
    shard_seconds: float = 1e9,
    lengths: dict[str, int] | None = None,
    row_sizes: list[int] | None = None,
) -> Run:
    """The scheduler's own steps; a text ends at its `max_tokens`, or at its length in `lengths` if that is less."""
    plan = plan_of(requests, config, shard_seconds, row_sizes)
    pool = BlockPool(num_kv_blocks(SHAPE, config, FLOAT32), config.block_size)
    scheduler = Scheduler(config, pool, SHAPE.max_model_len)
    added = [s for shard in plan.shards for s in scheduler.add(shard_work(plan, shard, requests))]
    length_of = {s.key: min(s.max_tokens, (lengths or {}).get(s.request.request_id, s.max_tokens)) for s in added}
    steps: Steps = []
    while scheduler.has_work():
        output = scheduler.schedule()
        assert output is not None
        steps.append((output.num_prefill_tokens, output.num_decode_tokens, output.num_label_tokens, pool.num_used))
        live = [scheduler.sequences[key] for key in output.reads.of_kind(ReadKind.SAMPLE).key.tolist()]
        scheduler.update(output, {s.key: Sampled(1, len(s.token_ids) + 1 >= length_of[s.key]) for s in live})
    scheduler.check_integrity()
    refused = sum(s.finished and not s.admitted and not s.asked for s in added)
    return Run(steps, pool.peak_used, refused, scheduler.evictions)


def test_drawn_trajectory() -> None:
    """A document of 5 tokens with two rows of one, then a prompt of 12, in steps of 8 tokens."""
    requests = [request_of([1, 2, 3, 1, 2, last], 4) for last in (1, 2)] + [request_of([3] * 12, 4)]
    config = replace(config_of(40, step_tokens=8), order="fcfs")
    # 2 blocks for the document and 1 for each row with its 3 decoded tokens; 4 for the prompt with its own.
    drawn = [(8, 0, 0, 8), (6, 2, 0, 8), (5, 2, 0, 8), (0, 3, 0, 8), (0, 1, 0, 4), (0, 1, 0, 4)]
    assert steps_of(plan_of(requests, config).trajectory) == drawn == scheduled(requests, config).steps


def test_no_requests_take_no_step() -> None:
    trajectory = plan_of([], config_of(10)).trajectory
    assert (trajectory.num_steps, trajectory.peak_blocks) == (0, 0)


def test_decode_is_reserved_behind_the_prompt() -> None:
    # 5 prompt tokens and 4 of the 5 that are generated: 9 tokens in blocks of 4.
    assert predicted_blocks([request_of([1] * 5, 5)], config_of(10)) == 3


def test_scored_leaves_hold_nothing() -> None:
    # Only the shared node of 6 tokens is kept.
    requests = [request_of([1] * 6 + [row, row], labels=LABELS) for row in range(2, 6)]
    assert predicted_blocks(requests, config_of(10)) == 2
    assert predicted_blocks(requests[:1], config_of(10)) == 0


def test_a_group_is_freed_before_the_next() -> None:
    # A step computes one group, whose rows generate one token and so keep nothing but the document's 2 blocks.
    requests = [request_of([d] * 8 + [row]) for d in (1, 2, 3) for row in (4, 5)]
    assert predicted_blocks(requests, config_of(100, step_tokens=10)) == 2


def test_rows_that_generate_hold_their_own_blocks() -> None:
    requests = [request_of([1] * 8 + [row], 3) for row in (4, 5, 6)]
    assert predicted_blocks(requests, config_of(100)) == 2 + 3
    assert predicted_blocks(requests, config_of(4)) == 2 + 2


@pytest.mark.parametrize(("max_num_seqs", "blocks"), [(1, 1), (2, 2), (9, 5)])
def test_count_admission_bounds_requests(max_num_seqs: int, blocks: int) -> None:
    requests = [request_of([row], 3) for row in range(1, 6)]
    config = replace(config_of(100), admission="count", max_num_seqs=max_num_seqs)
    assert predicted_blocks(requests, config) == scheduled(requests, config).peak_blocks == blocks


def test_equal_prompts_take_their_first_token_together() -> None:
    """The second has no room to decode in before the first is done: it waits with one token."""
    requests = [request_of([1, 2, 3], 5, name=name) for name in "ab"]
    config = config_of(2)
    # One block of the prompt and one of a's 4 decoded tokens; b decodes its own in the step behind a's last.
    drawn = [(3, 0, 0, 2), *[(0, 1, 0, 2)] * 4, *[(0, 1, 0, 2)] * 4]
    assert steps_of(plan_of(requests, config).trajectory) == drawn == scheduled(requests, config).steps


def test_labels_of_equal_prompts_are_spent_together() -> None:
    requests = [request_of([1, 2, 3], labels=LABELS, name=name) for name in "abc"] + [request_of([2] * 5)]
    config = replace(config_of(9, step_tokens=5), order="fcfs")
    # Three tokens and as many labels' leave nothing of the first step.
    drawn = [(3, 0, 3, 0), (5, 0, 0, 0)]
    assert steps_of(plan_of(requests, config).trajectory) == drawn == scheduled(requests, config).steps


def test_prompts_that_begin_one_another_fit_the_least_pool() -> None:
    # Decode KV is kept apart from a node that others need, so that it is free when its request ends.
    requests = [request_of([0] * length, 6) for length in range(1, 13)]
    config = config_of(14, step_tokens=10, block_size=2)
    assert predicted_blocks(requests, config) == scheduled(requests, config).peak_blocks == 14


def test_a_text_that_ends_early_may_raise_the_peak() -> None:
    """What waited then runs beside another text than was simulated: the pool bounds the peak, the plan does not."""
    long, short, waiting = request_of([1], 16), request_of([2] * 12, 8), request_of([3] * 17, 4)
    config = replace(config_of(10), order="fcfs")
    # 4 and 5 blocks; the third request's 5 fit when the second is done, or one block more when only the first is.
    assert scheduled([long, short, waiting], config).peak_blocks == 9
    assert predicted_blocks([long, short, waiting], config) == 9
    assert scheduled([long, short, waiting], config, lengths={long.request_id: 2}).peak_blocks == 10


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=12)
label_sets = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=3)


@st.composite
def tables(draw: st.DrawFn) -> list[Request]:
    """Rows that generate and rows that are scored, some of them with equal prompts."""
    rows = draw(st.lists(st.tuples(prompts, st.integers(1, 6), st.none() | label_sets), min_size=1, max_size=14))
    stems = [prompt for prompt, _, _ in rows]
    again = draw(st.lists(st.tuples(st.sampled_from(stems), st.integers(1, 6), st.none() | label_sets), max_size=8))
    return [request_of(*row, name) for name, row in enumerate(rows + again)]


@st.composite
def configs(draw: st.DrawFn) -> EngineConfig:
    config = config_of(draw(st.integers(8, 40)), draw(st.integers(1, 24)), draw(st.integers(1, 4)))
    return replace(
        config,
        sharing=draw(st.sampled_from(SHARING)),
        order=draw(st.sampled_from(ORDER)),
        admission=draw(st.sampled_from(ADMISSION)),
        max_num_seqs=draw(st.integers(1, 6)),
    )


@settings(max_examples=200, deadline=None)
@given(tables(), configs(), st.sampled_from([1e9, 100.0]))
def test_equals_the_schedulers_steps(requests: list[Request], config: EngineConfig, shard_seconds: float) -> None:
    run = scheduled(requests, config, shard_seconds)
    assert run.evictions == 0
    assume(not run.refused)
    trajectory = plan_of(requests, config, shard_seconds).trajectory
    assert steps_of(trajectory) == run.steps
    assert trajectory.peak_blocks == run.peak_blocks


@settings(deadline=None)
@given(tables(), configs(), st.data())
def test_early_ends_stay_in_the_pool(requests: list[Request], config: EngineConfig, data: st.DataObject) -> None:
    lengths = {request.request_id: data.draw(st.integers(1, 6)) for request in requests}
    run = scheduled(requests, config, lengths=lengths)
    assert run.evictions == 0
    assert run.peak_blocks <= num_kv_blocks(SHAPE, config, FLOAT32)
    assert sum(step[1] for step in run.steps) <= plan_of(requests, config).trajectory.decode_tokens.sum()
