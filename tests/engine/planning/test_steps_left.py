"""Steps that are left, against tables by hand and against answers that are played out."""

import numpy as np
import pytest

from engine.planning.steps_left import decode_steps_left
from engine.scheduling.answer_lengths import AnswerLengths

ALL_ALIKE = AnswerLengths([10] * 50, [])


def test_nobody_is_left() -> None:
    assert decode_steps_left(ALL_ALIKE, [], 0, 20) == 0
    assert decode_steps_left(ALL_ALIKE, [], 3, 20) == pytest.approx(10)


def test_the_longest_decides_when_nobody_waits() -> None:
    assert decode_steps_left(ALL_ALIKE, [9], 0, 20) == pytest.approx(1)
    assert decode_steps_left(ALL_ALIKE, [2, 7, 9, 9], 0, 20) == pytest.approx(8)
    assert decode_steps_left(ALL_ALIKE, [2] * 1000, 0, 20) == pytest.approx(8)


def test_an_answer_that_is_longer_than_any_takes_a_token_more() -> None:
    assert decode_steps_left(ALL_ALIKE, [15], 0, 20) == pytest.approx(1)


@pytest.mark.parametrize("engines", [1, 4])
@pytest.mark.parametrize("waiting", [0, 40, 400])
def test_steps_are_those_of_answers_that_are_played_out(waiting: int, engines: int) -> None:
    """Geometric answers, 16 at a time on each engine, 200 draws: the next begins where one ends."""
    draw, rows, mean, most = np.random.default_rng(5), 16, 30, 128
    lengths = AnswerLengths(np.minimum(draw.geometric(1 / mean, 20_000), most).tolist(), ())
    played = [
        sum(steps_of(np.minimum(draw.geometric(1 / mean, rows + waiting), most), rows) for _ in range(engines))
        for _ in range(200 // engines)
    ]
    # Whoever goes on has one token yet, of lengths without memory.
    left = decode_steps_left(lengths, [1] * (rows * engines), waiting * engines, most, engines)
    assert left == pytest.approx(np.mean(played) - engines * (waiting == 0), rel=0.06)


def steps_of(lengths: np.ndarray, rows: int) -> int:
    ends = sorted(lengths[:rows].tolist())
    for one in lengths[rows:].tolist():
        ends[0] += one
        ends.sort()
    return max(ends)
