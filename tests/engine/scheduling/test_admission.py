"""The rule of admission, number by number; arrays of counts give the same."""

from dataclasses import replace

import numpy as np
import pytest

from engine.config import EngineConfig
from engine.scheduling.admission import AdmissionRule, decode_kv_tokens

CONFIG = EngineConfig(block_size=4, max_num_batched_tokens=8, max_num_seqs=2)
RULE = AdmissionRule.of(CONFIG, num_blocks=10)


def test_the_last_generated_tokens_kv_is_never_read() -> None:
    assert [decode_kv_tokens(max_tokens) for max_tokens in (0, 1, 2, 9)] == [0, 0, 1, 8]
    assert decode_kv_tokens(np.array([0, 1, 2, 9])).tolist() == [0, 0, 1, 8]


@pytest.mark.parametrize(
    ("is_leaf", "num_tokens", "decode_kv", "transient"),
    [(1, 8, 0, 1), (1, 9, 0, 0), (1, 8, 1, 0), (0, 8, 0, 0)],
    ids=["leaf", "longer than a step", "decodes", "inner"],
)
def test_a_node_that_no_later_step_reads(is_leaf: int, num_tokens: int, decode_kv: int, transient: int) -> None:
    assert RULE.transient(is_leaf, num_tokens, decode_kv) == transient
    arrays = (np.array([value]) for value in (is_leaf, num_tokens, decode_kv))
    assert RULE.transient(*arrays).tolist() == [transient]


@pytest.mark.parametrize(
    ("is_alone", "decode_kv", "node_blocks", "own_blocks"), [(1, 3, 2, 0), (0, 3, 2, 1), (1, 4, 3, 0), (0, 0, 2, 0)]
)
def test_decode_kv_lies_behind_the_node_of_one_request(
    is_alone: int, decode_kv: int, node_blocks: int, own_blocks: int
) -> None:
    tail = RULE.tail_tokens(is_alone, decode_kv)
    assert RULE.node_blocks(5, tail, 0) == node_blocks
    assert RULE.node_blocks(5, 0, 1) == 0
    assert RULE.own_blocks(decode_kv, tail) == own_blocks
    tails = RULE.tail_tokens(np.array([is_alone]), np.array([decode_kv]))
    assert RULE.node_blocks(np.array([5]), tails, np.array([0])).tolist() == [node_blocks]
    assert RULE.own_blocks(np.array([decode_kv]), tails).tolist() == [own_blocks]


def test_blocks_admit_and_so_does_the_count_where_it_is_the_policy() -> None:
    assert [RULE.admits(blocks, num_used=7, num_admitted=2) for blocks in (0, 3, 4)] == [True, True, False]
    by_count = AdmissionRule.of(replace(CONFIG, admission="count"), num_blocks=10)
    assert [by_count.admits(3, num_used=7, num_admitted=held) for held in (1, 2)] == [True, False]
    assert not by_count.admits(4, num_used=7, num_admitted=0)


def test_a_chunk_is_what_the_step_has_left_but_of_a_transient_node_all() -> None:
    assert [RULE.chunk_tokens(left, 3, 0) for left in (2, 5)] == [2, 3]
    assert RULE.chunk_tokens(5, 3, 1) == 5


def test_a_steps_tokens_must_be_settled() -> None:
    with pytest.raises(AssertionError, match="settled"):
        AdmissionRule.of(replace(CONFIG, max_num_batched_tokens=0), num_blocks=10)
