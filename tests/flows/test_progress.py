import pytest

from flows.progress import Meter, Progress, Work, tell, watch
from flows.progress_bar import time_words


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def meter(clock: Clock, **work: int) -> Meter:
    given = {"rows": 100, "rows_done": 0, "requests": 50, "tokens": 1000} | work
    return Meter(Work(**given), clock)


def test_rows_follow_the_requests_that_are_done() -> None:
    clock = Clock()
    reading = meter(clock, rows_done=20).read(25, 400)
    assert (reading.rows_done, reading.rows, reading.fraction) == (60, 100, 0.6)


def test_speed_and_time_left_come_from_the_last_seconds() -> None:
    clock = Clock()
    measured = meter(clock)
    assert measured.read(0, 0).seconds_left is None
    clock.now = 10.0
    first = measured.read(10, 200)
    assert first.tokens_per_second == pytest.approx(20)
    assert first.seconds_left == pytest.approx(40)
    clock.now = 40.0  # the slow start is out of the window by now
    measured.read(20, 300)
    clock.now = 41.0
    assert measured.read(21, 340).tokens_per_second == pytest.approx(40)


def test_text_that_ends_early_does_not_leave_time_at_the_end() -> None:
    clock = Clock()
    measured = meter(clock)
    measured.read(0, 0)
    clock.now = 5.0
    assert measured.read(50, 100).seconds_left == 0


def test_a_retried_shard_does_not_pass_the_end() -> None:
    assert meter(Clock()).read(80, 2000).rows_done == 100


def test_nothing_to_do_is_done() -> None:
    assert meter(Clock(), requests=0, tokens=0).read(0, 0).fraction == 1.0


def test_watchers_hear_until_they_leave() -> None:
    heard: list[str] = []
    with watch(lambda progress: heard.append(progress.stage)):
        tell(Progress("reading rows"))
    tell(Progress("planning"))
    assert heard == ["reading rows"]


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_time_words(seconds: float, words: str) -> None:
    assert time_words(seconds) == words
