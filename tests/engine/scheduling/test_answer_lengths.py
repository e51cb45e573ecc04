"""Lengths of answers that go on, against a table by hand and against answers that were drawn."""

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.scheduling.answer_lengths import SHAPES, SPREAD, AnswerLengths


def test_a_table_by_hand() -> None:
    """Of 4 answers one ends at 1 token and one at 3; the others have 2 and 3 so far.

    At 1 token 1 of 4 ends, at 3 tokens 1 of the 2 that have come so far: 3/4 pass 1 and 2, and 3/8 pass 3.
    """
    lengths = AnswerLengths([1, 3], [2, 3])
    assert [lengths.quantile(part, 0, 3) for part in (0.1, 0.24, 0.26, 0.6)] == [1, 1, 3, 3]
    assert lengths.quantile(0.49, 2, 9) == 3
    # Beyond what was seen the Weibull distribution goes on that fits best: 0.61 of a half has ended at 4 tokens.
    assert [lengths.quantile(part, 2, 9) for part in (0.5, 0.6, 0.99)] == [3, 4, 9]


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


def lengths_of(draw: np.random.Generator) -> tuple[list[int], list[int]]:
    ended, going = (draw.integers(1, 30, size=draw.integers(1, 12)).tolist() for _ in range(2))
    return ended, going


@pytest.mark.parametrize("seed", range(20))
def test_the_part_that_goes_on_is_the_product_limit(seed: int) -> None:
    """Brute force: at each length, of all that have come so far, those that do not end there."""
    ended, going = lengths_of(np.random.default_rng(seed))
    longest = max(ended + going)
    expected = [1.0]
    for tokens in range(1, longest):
        at_risk = sum(one >= tokens for one in ended + going)
        expected.append(expected[-1] * (1 - ended.count(tokens) / at_risk))
    estimate = AnswerLengths(ended, going)
    # going_on[t]: has more than t tokens, of which none ends at 0.
    assert estimate.going_on(longest).tolist() == pytest.approx(expected)
    assert estimate.mean(longest) == pytest.approx(sum(expected))


@pytest.mark.parametrize("seed", range(10))
def test_beyond_what_was_seen_the_likeliest_weibull_goes_on(seed: int) -> None:
    """Brute force over shapes and hazards: no other is likelier, the belief in one rate counted."""
    ended, going = lengths_of(np.random.default_rng(seed))
    seen = np.array(ended + going, dtype=np.float64)
    found: list[tuple[float, float, float]] = []
    for shape in SHAPES.tolist():
        hazards = len(ended) / (seen**shape).sum() * np.geomspace(0.5, 2.0, 101)
        logs = (shape - 1) * np.log(ended).sum() - hazards * (seen**shape).sum()
        likelihood = len(ended) * np.log(shape * hazards) + logs - 0.5 * (np.log(shape) / SPREAD) ** 2
        found.append((float(likelihood.max()), shape, float(hazards[np.argmax(likelihood)])))
    _, shape, hazard = max(found)
    last = int(seen.max())
    going_on = AnswerLengths(ended, going).going_on(last + 6)[last:]
    if going_on[0] > 0:
        expected = np.exp(-hazard * (np.arange(last, last + 6) ** shape - last**shape))
        assert (going_on / going_on[0]).tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_answers_of_one_length_end_late_and_then_fast() -> None:
    """256 answers of 100 tokens on average, few of which are shorter than 70, when 70 have come: an early look."""
    truth = np.maximum(1, np.random.default_rng(3).normal(100, 20, 256).round()).astype(np.int64)
    ended = truth[truth <= 70].tolist()
    lengths = AnswerLengths(ended, [70] * (256 - len(ended)))
    assert lengths.mean(512) == pytest.approx(truth.mean(), rel=0.2)
