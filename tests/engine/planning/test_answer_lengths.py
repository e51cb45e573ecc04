"""Lengths of answers that go on, against a table by hand and against answers that were drawn."""

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.planning.answer_lengths import AnswerLengths


def test_a_table_by_hand() -> None:
    """Of 4 answers one ends at 1 token and one at 3; the others have 2 and 3 so far.

    At 1 token 1 of 4 ends, at 3 tokens 1 of the 2 that have come so far: 3/4 pass 1 and 2, and 3/8 pass 3.
    """
    lengths = AnswerLengths([1, 3], [2, 3])
    assert [lengths.quantile(part, 0, 3) for part in (0.1, 0.24, 0.26, 0.6)] == [1, 1, 3, 3]
    assert lengths.quantile(0.49, 2, 9) == 3
    # Beyond what was seen: 2 ends in 9 tokens, so that of the half which goes on 7/9 pass each token.
    assert [lengths.quantile(part, 2, 9) for part in (0.5, 0.6, 0.62, 0.99)] == [3, 4, 5, 9]


def test_nothing_ended_and_answers_become_as_long_as_they_may() -> None:
    assert AnswerLengths([], [5, 5, 2]).expected([5, 5, 2], [30, 6, 7]).tolist() == [30, 6, 7]
    assert AnswerLengths([], []).expected([0], [12]).tolist() == [12]


def test_an_answer_becomes_longer_than_it_is_and_no_longer_than_it_may() -> None:
    assert AnswerLengths([1] * 50, [9]).expected([9, 0], [10, 10])[0] == 10
    assert AnswerLengths([1] * 50, []).expected([0] * 5, [10] * 5).tolist() == [1] * 5


@pytest.mark.parametrize("mean", [10, 40, 200])
def test_early_in_a_run_the_short_ones_do_not_decide(mean: int) -> None:
    """400 answers of a geometric length, seen when 16 at a time have given a fifth of all tokens."""
    draw = np.random.default_rng(1)
    truth = np.minimum(draw.geometric(1 / mean, 400), 256)
    ended, going, left = seen_early(truth, 16, int(truth.sum() / 5))
    lengths = AnswerLengths([one for one in ended if one < 256], [*(one for one in ended if one == 256), *going])
    expected = sum(ended) + lengths.expected([*going, *[0] * left], [256] * (len(going) + left)).sum()
    assert expected == pytest.approx(truth.sum(), rel=0.25)
    naive = np.mean(ended) * len(truth)
    assert abs(expected - truth.sum()) < abs(naive - truth.sum())


def seen_early(truth: NDArray[np.int64], together: int, tokens: int) -> tuple[list[int], list[int], int]:
    """A token at a time of those that decode together, the next where one ends: ended, going, and how many wait."""
    waiting: list[int] = truth.tolist()
    going: list[list[int]] = []
    ended: list[int] = []
    while tokens > 0:
        while len(going) < together and waiting:
            going.append([0, waiting.pop(0)])
        for one in going:
            one[0] += 1
            tokens -= 1
        ended += [done for done, length in going if done == length]
        going = [one for one in going if one[0] < one[1]]
    return ended, [done for done, _ in going], len(waiting)
