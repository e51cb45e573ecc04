"""Counts and FLOPs against numbers worked out by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.model.model_shape import ModelShape
from engine.planning.cost import attended_keys, count_work, flops
from engine.planning.groups import arrange, share
from engine.planning.prefix_tree import build_prefix_tree
from engine.request import Request
from engine.sampling_params import SamplingParams

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
    tree = build_prefix_tree([r.prompt_token_ids for r in REQUESTS])
    work = count_work(arrange(share(tree, "multi_level", 16), np.array([3, 0]), "fcfs"), REQUESTS)
    assert work.prefill_tokens.tolist() == [3 + 1, 2]
    assert work.label_tokens.tolist() == [0, 2]
    assert work.decode_tokens.tolist() == [3, 0]
    assert work.answer_tokens.tolist() == [2, 2]
    assert work.computed_tokens.tolist() == [6, 4]
    assert work.head_rows.tolist() == [3, 3]
    # Prompt of 4 then decodes that see 5 and 6; two prompt tokens that see 4 and 5, label tokens that see 6 and 7.
    assert work.attended_keys.tolist() == [1 + 2 + 3 + 4 + 5 + 6, 4 + 5 + 6 + 7]


def test_flops_by_hand() -> None:
    tree = build_prefix_tree([r.prompt_token_ids for r in REQUESTS])
    work = count_work(arrange(share(tree, "multi_level", 16), np.array([3, 0]), "fcfs"), REQUESTS)
    assert SHAPE.matmul_params == MATMUL
    assert flops(work, SHAPE).tolist() == [
        2 * MATMUL * 6 + 2 * HEAD * 3 + 4 * 2 * 2 * 4 * 21,
        2 * MATMUL * 4 + 2 * HEAD * 3 + 4 * 2 * 2 * 4 * 22,
    ]


@given(st.integers(0, 50), st.integers(0, 50))
def test_attended_keys(start: int, length: int) -> None:
    end = start + length
    assert attended_keys(np.array(start), np.array(end)) == sum(p + 1 for p in range(start, end))
