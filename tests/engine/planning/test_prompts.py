"""Prompts as one array: their order and common prefixes as Python has them for lists."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.planning.prompts import Prompts

token_lists = st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=10)


def prompts_of(*prompts: list[int]) -> Prompts:
    return Prompts.of([np.array(prompt, dtype=np.int32) for prompt in prompts])


@given(token_lists, st.data())
def test_order_and_common_prefixes_of_any(prompts: list[list[int]], data: st.DataObject) -> None:
    own = prompts_of(*prompts)
    assert [prompt.tolist() for prompt in map(own.__getitem__, range(len(own)))] == prompts
    rows = range(len(prompts))
    assert own.sorted_order().tolist() == sorted(rows, key=prompts.__getitem__)
    adapters = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(prompts), max_size=len(prompts))), dtype=int)
    assert own.sorted_order(adapters).tolist() == sorted(rows, key=lambda r: (adapters[r], prompts[r]))
    pairs = [(a, b) for a in rows for b in rows]
    one, other = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    assert own.common_prefixes(one, other).tolist() == [common(prompts[a], prompts[b]) for a, b in pairs]


def common(a: list[int], b: list[int]) -> int:
    return max(length for length in range(len(a) + 1) if a[:length] == b[:length])


def test_prefixes_longer_than_what_is_compared_at_once() -> None:
    stem = list(range(200))
    own = prompts_of(stem, [*stem[:128], 5], [*stem[:64], 5], stem[:64], [*stem, 1], [*stem[:127], 300])
    assert own.common_prefixes(np.zeros(6, dtype=np.int64), np.arange(6)).tolist() == [200, 128, 64, 64, 200, 127]


def test_what_lies_behind_a_prompt_is_not_compared() -> None:
    """The first prompt goes on, in memory, as the second does."""
    own = prompts_of([1, 2], [3, 4], [1, 2, 3, 4])
    assert own.common_prefixes(np.array([0]), np.array([2])).tolist() == [2]


def test_chosen_prompts() -> None:
    own = prompts_of([1], [2, 3], [4])
    assert [prompt.tolist() for prompt in map(own.choose(np.array([2, 1])).__getitem__, range(2))] == [[4], [2, 3]]
