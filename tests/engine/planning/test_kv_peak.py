"""The predicted KV peak: by hand, and equal to what the scheduler comes to use."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import ORDER, SHARING, EngineConfig, Order, Sharing
from engine.model.model_shape import ModelShape, num_kv_blocks
from engine.planning.planner import make_plan, shard_work
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.scheduler import Sampled, Scheduler
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


def config_of(num_blocks: int, step_tokens: int = 512, block_size: int = 4) -> EngineConfig:
    memory = num_blocks * block_size * TOKEN_BYTES
    return EngineConfig(kv_cache_memory=memory, block_size=block_size, max_num_batched_tokens=step_tokens)


def request_of(prompt: list[int], max_tokens: int, name: object = "") -> Request:
    """`max_tokens` 0 asks for the log-likelihoods of two labels instead."""
    token_ids = np.array(prompt, dtype=np.int32)
    request_id = f"{prompt} {name}"
    if max_tokens:
        return Request(request_id, token_ids, SamplingParams(max_tokens=max_tokens))
    return Request(request_id, token_ids, labels=(np.array([1, 2], np.int32), np.array([3], np.int32)))


def predicted_blocks(requests: list[Request], config: EngineConfig) -> int:
    plan = make_plan(requests, SHAPE, config, kv_format=FLOAT32, flops_per_second=1.0, shard_seconds=1e4)
    return plan.summary.peak_kv_bytes // (TOKEN_BYTES * config.block_size)


def used_blocks(requests: list[Request], config: EngineConfig) -> int:
    """What the scheduler uses at most when nothing stops before its `max_tokens`."""
    plan = make_plan(requests, SHAPE, config, kv_format=FLOAT32, flops_per_second=1.0, shard_seconds=1e4)
    pool = BlockPool(num_kv_blocks(SHAPE, config, FLOAT32), config.block_size)
    scheduler = Scheduler(config, pool, SHAPE.max_model_len)
    for shard in plan.shards:
        scheduler.add(shard_work(plan, shard, requests))
    while scheduler.has_work():
        output = scheduler.schedule()
        live = [scheduler.sequences[sample.key] for sample in output.samples]
        scheduler.update(output, {s.key: Sampled(1, len(s.token_ids) + 1 == s.max_tokens) for s in live})
    scheduler.check_integrity()
    return pool.peak_used


def test_decode_is_reserved_behind_the_prompt() -> None:
    # 5 prompt tokens and 4 of the 5 that are generated: 9 tokens in blocks of 4.
    assert predicted_blocks([request_of([1] * 5, 5)], config_of(10)) == 3


def test_scored_leaves_hold_nothing() -> None:
    # Only the shared node of 6 tokens is kept.
    requests = [request_of([1] * 6 + [row, row], 0) for row in range(2, 6)]
    assert predicted_blocks(requests, config_of(10)) == 2
    assert predicted_blocks(requests[:1], config_of(10)) == 0


def test_a_group_is_freed_before_the_next() -> None:
    # A step computes one group, whose rows generate one token and so keep nothing but the document's 2 blocks.
    requests = [request_of([d] * 8 + [row], 1) for d in (1, 2, 3) for row in (4, 5)]
    assert predicted_blocks(requests, config_of(100, step_tokens=10)) == 2


def test_rows_that_generate_hold_their_own_blocks() -> None:
    requests = [request_of([1] * 8 + [row], 3) for row in (4, 5, 6)]
    assert predicted_blocks(requests, config_of(100)) == 2 + 3
    assert predicted_blocks(requests, config_of(4)) == 2 + 2


@pytest.mark.parametrize(("max_num_seqs", "blocks"), [(1, 1), (2, 2), (9, 5)])
def test_count_admission_bounds_requests(max_num_seqs: int, blocks: int) -> None:
    requests = [request_of([row], 3) for row in range(1, 6)]
    assert predicted_blocks(requests, replace(config_of(100), admission="count", max_num_seqs=max_num_seqs)) == blocks


def test_prompts_that_begin_one_another_fit_the_least_pool() -> None:
    # Decode KV is kept apart from a node that others need, so that it is free when its request ends.
    requests = [request_of([0] * length, 6) for length in range(1, 13)]
    config = config_of(14, step_tokens=10, block_size=2)
    assert predicted_blocks(requests, config) == used_blocks(requests, config) == 14


# The least pool holds any request alone: 12 prompt tokens in nodes of a token each, and 5 behind.
prompt = st.lists(st.integers(0, 2), min_size=1, max_size=12)
any_jobs = st.lists(st.tuples(prompt, st.integers(0, 6)), min_size=1, max_size=12)
jobs = any_jobs.filter(lambda jobs: len({tuple(prompt) for prompt, _ in jobs}) == len(jobs))


@given(jobs, st.sampled_from(SHARING), st.sampled_from(ORDER), st.integers(14, 40), st.integers(3, 20))
def test_equals_what_the_scheduler_uses(
    jobs: list[tuple[list[int], int]], sharing: Sharing, order: Order, num_blocks: int, step_tokens: int
) -> None:
    requests = [request_of(tokens, max_tokens) for tokens, max_tokens in jobs]
    config = replace(config_of(num_blocks, step_tokens, block_size=2), sharing=sharing, order=order)
    assert predicted_blocks(requests, config) == used_blocks(requests, config)


@given(any_jobs, st.sampled_from(SHARING), st.integers(14, 20), st.integers(3, 20))
def test_equal_prompts_drain_too(
    jobs: list[tuple[list[int], int]], sharing: Sharing, num_blocks: int, step_tokens: int
) -> None:
    requests = [request_of(tokens, max_tokens, name) for name, (tokens, max_tokens) in enumerate(jobs)]
    config = replace(config_of(num_blocks, step_tokens, block_size=2), sharing=sharing)
    assert used_blocks(requests, config) <= num_blocks
