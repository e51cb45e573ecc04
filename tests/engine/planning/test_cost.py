"""Counts and seconds against numbers worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.device_rates import DeviceRates
from engine.model.model_shape import ModelShape
from engine.planning.cost import CostModel, Work, attended_keys, count_work
from engine.planning.groups import arrange, share
from engine.planning.prefix_tree import build_prefix_tree
from engine.planning.request_table import RequestTable
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.scheduling.reads import Reads
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.kv_format import FLOAT32
from kernels.segments import Segment, Segments

SHAPE = ModelShape(
    num_layers=2,
    hidden_size=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    intermediate_size=16,
    vocab_size=32,
    max_model_len=64,
)
MATMUL = 2 * (8 * 4 * 2 * (2 + 1) + 3 * 8 * 16)
HEAD = 8 * 32


def tokens(*ids: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(ids, dtype=np.int32)


def choice(*prompt: int, labels: list[list[int]]) -> Request:
    return Request(str(prompt), tokens(*prompt), labels=tuple(tokens(*label) for label in labels))


def generate(*prompt: int, max_tokens: int) -> Request:
    return Request(str(prompt), tokens(*prompt), SamplingParams(max_tokens=max_tokens))


REQUESTS = [generate(1, 1, 1, 2, max_tokens=3), choice(1, 1, 1, 3, 3, labels=[[7, 8], [7, 9, 9], [5]])]


def test_counts() -> None:
    work = work_of(REQUESTS)
    assert work.prefill_tokens.tolist() == [3 + 1, 2]
    assert work.label_tokens.tolist() == [0, 2]
    assert work.decode_tokens.tolist() == [3, 0]
    assert work.answer_tokens.tolist() == [2, 2]
    assert work.computed_tokens.tolist() == [6, 4]
    assert work.head_rows.tolist() == [3, 3]
    # Prompt of 4 then decodes that see 5 and 6; two prompt tokens that see 4 and 5, label tokens that see 6 and 7.
    assert work.decode_keys.tolist() == [5 + 6, 0]
    assert work.attended_keys.tolist() == [1 + 2 + 3 + 4 + 5 + 6, 4 + 5 + 6 + 7]


def work_of(requests: list[Request]) -> Work:
    table = RequestTable.of(requests)
    tree = build_prefix_tree(table.prompts)
    decode = np.array([request.max_tokens for request in requests])
    return count_work(arrange(share(tree, "multi_level", 16), decode, "fcfs"), table)


def test_log_probabilities_of_prompt_tokens_are_rows_of_the_head() -> None:
    """A stem's tokens count once for all that ask them, with the first request below it."""
    asked = [
        replace(generate(1, 1, 1, 2, max_tokens=1), prompt_logprobs_from=3),
        replace(choice(1, 1, 1, 3, 3, labels=[]), prompt_logprobs_from=1),
        choice(1, 1, 1, 4, labels=[[5]]),
        choice(9, 9, labels=[]),
    ]
    work = work_of(asked)
    # Two tokens of the stem and the first's own token, besides the row that it decodes from; then two; then a label's.
    assert work.prompt_head_rows.tolist() == [2 + 1 + 1, 2, 1, 0]
    assert work.head_rows.tolist() == [4, 2, 1, 0]


# Of a computed token, of a row of logits, of an attended key; bytes of a token's KV.
MATMUL_FLOPS, HEAD_FLOPS, KEY_FLOPS, KV_BYTES = 2 * MATMUL, 2 * HEAD, 4 * 2 * 2 * 4, 2 * 2 * 4 * 4
CONFIG = EngineConfig(kv_cache_memory=1000 * KV_BYTES)


def test_at_one_flop_a_second_and_endless_bandwidth_seconds_are_flops() -> None:
    assert (SHAPE.matmul_params, SHAPE.kv_bytes_per_token(FLOAT32)) == (MATMUL, KV_BYTES)
    cost = CostModel(SHAPE, FLOAT32, DeviceRates(1.0, 1.0), weight_bytes=1e9)
    assert cost.seconds(work_of(REQUESTS), CONFIG).tolist() == [
        MATMUL_FLOPS * 6 + HEAD_FLOPS * 3 + KEY_FLOPS * 21,
        MATMUL_FLOPS * 4 + HEAD_FLOPS * 3 + KEY_FLOPS * 22,
    ]


def test_without_answers_each_request_has_the_price_of_one_token() -> None:
    """The first token of an answer comes with the prompt's last."""
    cost = CostModel(SHAPE, FLOAT32, DeviceRates(2.0, 8.0, memory_bytes=3.0), weight_bytes=1000.0)
    short = work_of([generate(1, 1, 1, 2, max_tokens=1), REQUESTS[1]])
    assert cost.seconds(work_of(REQUESTS).without_answers(), CONFIG).tolist() == cost.seconds(short, CONFIG).tolist()


def test_matmuls_and_attention_have_rates_of_their_own() -> None:
    cost = CostModel(SHAPE, FLOAT32, DeviceRates(2.0, 8.0))
    assert cost.seconds(work_of(REQUESTS), CONFIG).tolist() == [
        (MATMUL_FLOPS * 6 + HEAD_FLOPS * 3) / 2 + KEY_FLOPS * 21 / 8,
        (MATMUL_FLOPS * 4 + HEAD_FLOPS * 3) / 2 + KEY_FLOPS * 22 / 8,
    ]


def test_decode_steps_wait_for_the_weights_once_for_all_rows_and_for_own_keys() -> None:
    """Two texts of 3 behind one prefix of 4: two steps each; of the prefix the first request reads alone."""
    requests = [generate(1, 1, 1, 1, 7, max_tokens=3), generate(1, 1, 1, 1, 8, max_tokens=3)]
    cost = CostModel(SHAPE, FLOAT32, DeviceRates(1e30, 1e30, memory_bytes=2.0), weight_bytes=1000.0)
    work = work_of(requests)
    assert cost.decode_rows(work, CONFIG) == 2
    # Steps of 1000 bytes for two rows; keys: (4 + 1) and 1 before the first text, 1 and 2 of its own.
    first = (2 * 1000 / 2 + KV_BYTES * (2 * 5 + 1 + 2)) / 2
    second = (2 * 1000 / 2 + KV_BYTES * (2 * 1 + 1 + 2)) / 2
    assert cost.seconds(work, CONFIG).tolist() == pytest.approx([first, second], rel=1e-12)


def test_rows_that_decode_together_are_those_that_the_kv_budget_holds() -> None:
    """Each request has 4 tokens of its own and generates 5, the last of which is not kept: 8."""
    requests = [generate(row, row, row, row, max_tokens=5) for row in range(10)]
    work, cost = work_of(requests), CostModel(SHAPE, FLOAT32, DeviceRates(1.0, 1.0))
    room = {tokens: replace(CONFIG, kv_cache_memory=tokens * KV_BYTES) for tokens in (4, 24, 28, 1000)}
    assert [cost.decode_rows(work, config) for config in room.values()] == [1.0, 3.0, 3.5, 10.0]
    counted = replace(room[1000], admission="count", max_num_seqs=6)
    assert cost.decode_rows(work, counted) == 6.0
    assert cost.decode_rows(work_of([choice(1, labels=[[2]])]), CONFIG) == 1.0


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=8), st.floats(1, 1e6))
def test_drawn_work_takes_no_less_than_its_flops_and_no_less_than_its_reads(
    drawn: list[tuple[int, int]], memory_bytes: float
) -> None:
    requests = [generate(*[row] * length, max_tokens=new) for row, (length, new) in enumerate(drawn)]
    work = work_of(requests)
    computing = CostModel(SHAPE, FLOAT32, DeviceRates(1e3, 1e3)).seconds(work, CONFIG)
    cost = CostModel(SHAPE, FLOAT32, DeviceRates(1e3, 1e3, memory_bytes), weight_bytes=500.0)
    steps = np.array([new - 1 for _, new in drawn])
    keys = np.array([sum(length + step for step in range(1, new)) for length, new in drawn])
    reading = (steps * 500.0 / cost.decode_rows(work, CONFIG) + keys * KV_BYTES) / memory_bytes
    seconds = cost.seconds(work, CONFIG)
    assert (seconds >= computing * (1 - 1e-12)).all()
    assert (seconds >= reading * (1 - 1e-12)).all()
    assert (seconds <= (computing + reading) * (1 + 1e-12)).all()


@given(st.integers(0, 50), st.integers(0, 50))
def test_attended_keys(start: int, length: int) -> None:
    end = start + length
    assert attended_keys(np.array(start), np.array(end)) == sum(p + 1 for p in range(start, end))


def step(positions: list[int], segments: list[Segment], decodes: int) -> SchedulerOutput:
    numbers = np.array(positions, dtype=np.int64)
    reads = Reads.samples(np.array([len(numbers) - 1]), np.array([0]))
    return SchedulerOutput(numbers, numbers, numbers, Segments.of(segments), reads, 3 - decodes, decodes, 0)


def test_the_seconds_of_a_step() -> None:
    """Computing or reading the weights, whichever takes longer; what is decoded reads its KV, a shared token once."""
    attention = 4 * 2 * 2 * 4
    fast = CostModel(SHAPE, FLOAT32, DeviceRates(1000.0, 1.0, 1e9), weight_bytes=1.0)
    prefill = step([0, 1, 2], [Segment(0, 3, 0, 3, 0)], 0)
    flops = 2 * SHAPE.matmul_params * 3 + 2 * HEAD * 1 + attention * (1 + 2 + 3)
    assert fast.step_seconds(prefill) == pytest.approx(flops / 1000)
    slow = CostModel(SHAPE, FLOAT32, DeviceRates(1e12, 1.0, 100.0), weight_bytes=500.0)
    decode = step([8, 8, 8], [Segment(0, 3, 0, 8, 0), *(Segment(r, r + 1, 8 + r, 9 + r, 8) for r in range(3))], 3)
    kv = (8 + 3) * 2 * SHAPE.num_layers * SHAPE.num_kv_heads * SHAPE.head_dim * 4
    assert slow.step_seconds(decode) == pytest.approx(500 / 100 + kv / 100)
    assert slow.step_seconds(prefill) == pytest.approx(500 / 100)


def test_the_limit_of_a_step_is_what_has_to_be_computed() -> None:
    """Of two layers, the last one runs the one row that is asked for; its logits may be looked for elsewhere."""
    cost = CostModel(SHAPE, FLOAT32, DeviceRates(1000.0, 1.0))
    prefill = step([0, 1, 2], [Segment(0, 3, 0, 3, 0)], 0)
    first = (2 * SHAPE.matmul_params * 3 + 4 * 2 * 2 * 4 * (1 + 2 + 3)) / 2
    last = 2 * SHAPE.matmul_params * 1 / 2
    assert cost.step_limit(prefill, computes_logits=False) == pytest.approx((first + last) / 1000)
    assert cost.step_limit(prefill, computes_logits=True) == pytest.approx((first + last + 2 * HEAD) / 1000)
    assert cost.step_limit(prefill, computes_logits=True) < cost.step_seconds(prefill)
