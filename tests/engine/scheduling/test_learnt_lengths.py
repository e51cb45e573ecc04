"""What is believed of texts' lengths, and when; other tests say that texts come to the same, whatever is believed."""

from collections.abc import Iterable

import numpy as np
import pytest

from engine.scheduling import learnt_lengths
from engine.scheduling.answer_lengths import AnswerLengths
from engine.scheduling.learnt_lengths import FIRST_ENDS, LearntLengths, kind_of
from engine.scheduling.sequence import Sequence
from tests.engine.scheduling.test_drafts import sequence_of

MOST = 40
KIND = 6


def text(length: int, max_tokens: int = MOST) -> Sequence:
    return sequence_of([1, 2], [5] * length, max_tokens=max_tokens)


def end(lengths: LearntLengths, length: int, count: int, going: Iterable[Sequence] = ()) -> None:
    for _ in range(count):
        lengths.end(length, MOST)
    lengths.learn(going)


def test_few_ends_say_nothing() -> None:
    lengths = LearntLengths(KIND)
    end(lengths, 4, FIRST_ENDS - 1)
    assert lengths.likely(0.5, 0, MOST) == MOST
    end(lengths, 4, 1)
    assert lengths.likely(0.5, 0, MOST) == 4


def test_who_goes_on_and_who_was_cut_became_no_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 texts one ended at 4 tokens; half of all are expected to pass it. One of another limit says nothing."""
    monkeypatch.setattr(learnt_lengths, "FIRST_ENDS", 4)
    lengths = LearntLengths(KIND)
    end(lengths, MOST, 3)
    end(lengths, 4, 1, [text(9), text(9), text(9), text(20), *[text(2, 30)] * 30])
    assert lengths.likely(0.1, 0, MOST) == 4
    assert lengths.likely(0.5, 0, MOST) > 20


def test_a_context_that_cuts_a_text_does_not_end_it() -> None:
    lengths = LearntLengths(KIND)
    for _ in range(FIRST_ENDS):
        lengths.end(9, 9)
    lengths.learn([])
    assert [lengths.likely(0.5, 0, most) for most in (9, MOST)] == [9, MOST]


def test_nobody_who_ended_and_all_become_as_long_as_they_may() -> None:
    lengths = LearntLengths(KIND)
    end(lengths, MOST, FIRST_ENDS)
    assert [lengths.likely(0.5, after, MOST) for after in (0, 30)] == [MOST, MOST]


def test_an_eighth_more_ends_are_taken_in_together() -> None:
    lengths = LearntLengths(KIND)
    end(lengths, 4, FIRST_ENDS)
    end(lengths, 30, FIRST_ENDS // 8 - 1)
    assert lengths.likely(0.99, 0, MOST) == 4
    end(lengths, 30, 1)
    assert lengths.likely(0.99, 0, MOST) == 30
    assert [lengths.likely(0.5, after, MOST) for after in (0, 4)] == [4, 30]


def test_beyond_what_was_seen_ends_come_as_for_the_time_left() -> None:
    ends = np.random.default_rng(0).geometric(1 / 60, 400).clip(1, 4096).tolist()
    lengths = LearntLengths(kind_of(text(1, 4096)))
    for length in ends:
        lengths.end(length, 4096)
    lengths.learn([])
    told = AnswerLengths(ends, []).quantile(0.6, max(ends), 4096)
    assert max(ends) < told < 2 * max(ends)
    assert lengths.likely(0.6, max(ends), 4096) == told


def test_limits_between_two_powers_of_two_are_of_one_kind() -> None:
    """What a prompt leaves of the context differs row by row."""
    assert [kind_of(text(1, most)) for most in (1, 2, 3, 4, 8191, 8192)] == [1, 2, 2, 3, 13, 14]
    lengths = LearntLengths(kind_of(text(1, 40)))
    for most in range(32, 32 + FIRST_ENDS):
        lengths.end(5, most)
    lengths.learn([])
    assert lengths.likely(0.5, 0, 63) == 5
