"""Windows beside lm-evaluation-harness's own, and the lists that its tests write down."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tasks.request.rolling_windows import rolling_windows

PREFIX = -100
Pairs = list[tuple[list[int], list[int]]]


def windows(count: int, window: int, context_len: int) -> Pairs:
    found = rolling_windows(np.array([PREFIX, *range(count)], np.int32), window, context_len)
    return [(one.context.tolist(), one.scored.tolist()) for one in found]


@given(st.integers(1, 60), st.integers(1, 25), st.data())
def test_they_are_those_of_lm_eval(count: int, window: int, data: st.DataObject) -> None:
    context_len = data.draw(st.integers(1, window))
    theirs = get_rolling_token_windows(list(range(count)), PREFIX, window, context_len)
    assert windows(count, window, context_len) == [make_disjoint_window(pair) for pair in theirs]


def pairs(*bounds: tuple[int, int, int]) -> Pairs:
    """The first window's predicted tokens, then the first token that is read, and the bounds of those predicted."""
    first = bounds[0][2]
    begun = ([PREFIX, *range(first - 1)], [*range(first)])
    return [begun, *(([*range(read, last - 1)], [*range(start, last)]) for read, start, last in bounds[1:])]


# The lists of lm-eval's own test-suite, by number of tokens, `max_seq_len` and `context_len`.
LITERAL = {
    (34, 10, 1): pairs((-1, 0, 10), (9, 10, 20), (19, 20, 30), (23, 30, 34)),
    (34, 10, 8): pairs((-1, 0, 10), *((end - 11, end - 3, end) for end in (13, 16, 19, 22, 25, 28, 31, 34))),
    (34, 10, 10): pairs((-1, 0, 10), *((at - 10, at, at + 1) for at in range(10, 34))),
    (30, 10, 10): pairs((-1, 0, 10), *((at - 10, at, at + 1) for at in range(10, 30))),
    (30, 10, 1): pairs((-1, 0, 10), (9, 10, 20), (19, 20, 30)),
    (9, 2, 1): pairs((-1, 0, 2), (1, 2, 4), (3, 4, 6), (5, 6, 8), (6, 8, 9)),
}


@pytest.mark.parametrize(("case", "literal"), LITERAL.items(), ids=str)
def test_lm_evals_own_lists_hold(case: tuple[int, int, int], literal: Pairs) -> None:
    count, window, context_len = case
    assert literal == [*get_rolling_token_windows([*range(count)], PREFIX, window, context_len)]
    assert windows(*case) == [make_disjoint_window(pair) for pair in literal]
