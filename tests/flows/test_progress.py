import math
from itertools import pairwise

import pytest

from engine.plan import Shard
from engine.planning.cost import Prices
from engine.request import RequestOutput
from flows.countdown import Countdown
from flows.progress import Meter, Progress, Waits, Work, tell, watch
from flows.progress_bar import done_words, time_words
from flows.token_costs import TokenCosts
from tasks.answers_seen import AnswersSeen
from tasks.workers import Computed


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def meter(clock: Clock, answers: AnswersSeen | None = None, **work: int) -> Meter:
    given = {"rows": 100, "rows_done": 0, "requests": 50, "prefill": 600, "label": 0, "decode": 400} | work
    return Meter(Work(**given, most=given["decode"] / max(given["requests"], 1)), answers or AnswersSeen(), clock)


def end(answers: AnswersSeen, count: int, tokens: int, reason: str = "stop") -> None:
    for _ in range(count):
        answers.take(RequestOutput("r", reason, 5, token_ids=tuple(range(tokens))))


def test_rows_follow_the_requests_that_are_done() -> None:
    reading = meter(Clock(), rows_done=20).read(Computed(25, 200, 0, 100))
    assert (reading.rows_done, reading.rows) == (60, 100)


def test_time_left_is_the_plans_tokens_at_the_last_minutes_speed() -> None:
    clock = Clock()
    measured = meter(clock, decode=0, prefill=900, label=100)
    assert measured.read(Computed()).seconds_left is None
    clock.now = 30.0  # the model loads
    measured.restart()
    assert measured.read(Computed()).seconds_left is None
    clock.now = 35.0
    assert measured.read(Computed()).seconds_left is None
    clock.now = 40.0
    first = measured.read(Computed(5, prefill=180, label=20))
    assert (first.tokens_per_second, first.fraction) == (20, 0.2)
    assert first.seconds_left == 40
    clock.now = 101.0
    measured.read(Computed(20, 300, 40))
    clock.now = 151.0
    assert measured.read(Computed(21, 600, 40)).tokens_per_second == 6  # over the 50 s before


def test_text_that_ends_early_is_expected_to_go_on_so() -> None:
    """40 requests of at most 100 tokens end after 10: from at most 4,000 to 400."""
    clock, answers = Clock(), AnswersSeen()
    measured = meter(clock, answers, requests=40, prefill=0, decode=4000)
    measured.read(Computed())
    clock.now = 10.0
    reading = measured.read(Computed(0, decode=40, going=(5,) * 8))
    assert reading.fraction == pytest.approx(40 / 4000)  # none has ended: each may have 100
    end(answers, 20, 10)
    clock.now = 11.0
    reading = measured.read(Computed(20, decode=220, going=(5,) * 4))
    assert reading.fraction == pytest.approx(220 / 400)
    clock.now = 20.0
    done = measured.read(Computed(40, decode=400))
    assert (done.fraction, done.seconds_left) == (1.0, 0)


def test_earlier_answers_are_believed_before_any_has_ended() -> None:
    clock = Clock()
    measured = meter(clock, AnswersSeen([(10, "stop")] * 30), requests=40, prefill=0, decode=4000)
    measured.read(Computed())
    clock.now = 1.0
    assert measured.read(Computed(0, decode=8, going=(1,) * 8)).fraction == pytest.approx(8 / 400)


def test_a_shard_that_was_done_before_is_no_work() -> None:
    clock = Clock()
    measured = meter(clock, decode=0)
    measured.skip(Shard(0, "s", 0, 25, 300, 0, 1.0), 50)
    measured.read(Computed())
    clock.now = 1.0
    reading = measured.read(Computed(5, prefill=60))
    assert (reading.fraction, reading.seconds_left, reading.rows_done) == (pytest.approx(0.2), pytest.approx(4.0), 60)


def test_nothing_jumps_while_rows_finish_late() -> None:
    """Four shards, one after the other: prefill, then decode, and all rows of a shard in its last second.

    A generated token costs 27 times a prompt's, and a quarter of the cap is never used.
    """
    clock = Clock()
    answers = AnswersSeen()
    measured = meter(clock, answers, rows=40, requests=40, prefill=40_000, decode=4_000)
    measured.read(Computed())
    shown: list[tuple[float, float]] = []
    fractions: list[float] = []
    for shard in range(4):
        for second in range(1, 31):
            clock.now += 1.0
            prefill = 10_000 * shard + min(10_000, 1_000 * second)
            decode = 750 * shard + max(0, second - 10) * 750 // 20
            ends = second == 30
            end(answers, 10 * ends, 75)
            going = () if ends or second <= 10 else ((second - 10) * 75 // 20,) * 10
            reading = measured.read(Computed(10 * (shard + ends), prefill, 0, decode, going=going))
            assert reading.seconds_left is not None
            shown.append((120 - clock.now, reading.seconds_left))
            fractions.append(reading.fraction)
    steps = [after - before for (_, before), (_, after) in pairwise(shown)]
    assert max(steps) < 4
    assert min(steps[:-1]) > -2
    assert all(abs(left - true) < 10 for true, left in shown[30:])
    assert shown[-1][1] == 0
    assert fractions == sorted(fractions)


def test_a_token_of_each_kind_has_its_own_cost() -> None:
    costs = TokenCosts(Prices())
    assert costs.seconds(1, 1, 0) is None
    costs.learn(1.0, 1000, 0, 0)
    assert costs.seconds(500, 500, 0) == pytest.approx(1.0)
    for _ in range(100):
        costs.learn(1.0, 1000, 0, 0)
        costs.learn(1.0, 0, 50, 0)
    assert costs.seconds(1000, 0, 0) == pytest.approx(1.0, rel=0.01)
    assert costs.seconds(0, 50, 0) == pytest.approx(1.0, rel=0.05)
    mixed = TokenCosts(Prices())
    for decode in range(100):
        mixed.learn(0.001 * 500 + 0.02 * decode, 500, decode, 0)
    assert mixed.seconds(0, 1, 0) == pytest.approx(0.02, rel=0.15)


def test_what_the_plan_expects_stands_until_readings_differ() -> None:
    """Sixteen tokens a step tell nothing of what a step alone costs: its share is the plan's, and all is twice that."""
    costs = TokenCosts(Prices(0.001, 0.001, 0.032))
    for _ in range(20):
        costs.learn(2 * (0.016 + 0.032), 0, 16, 1)
    assert costs.seconds(0, 16, 1) == pytest.approx(2 * (0.016 + 0.032))
    assert costs.seconds(0, 1, 1) == pytest.approx(2 * (0.001 + 0.032))


def test_the_end_of_a_run_is_steps_of_few_rows() -> None:
    """A step takes a second however many decode: two answers that go on take as long as one, not half of two."""
    clock, answers = Clock(), AnswersSeen([(10, "stop")] * 100)
    work = Work(rows=8, rows_done=0, requests=8, prefill=0, decode=80, most=10.0, prices=Prices(0.0, 0.0, 1.0))
    measured = Meter(work, answers, clock)
    measured.read(Computed(going=(0,) * 8))
    for second in range(1, 6):
        clock.now = float(second)
        reading = measured.read(Computed(decode=8 * second, steps=second, going=(second,) * 8))
    assert reading.seconds_left == pytest.approx(5.0)
    end(answers, 7, 5)
    clock.now = 6.0
    reading = measured.read(Computed(7, decode=41, steps=6, going=(6,)))
    assert reading.seconds_left == pytest.approx(4.0, abs=0.5)


def test_a_countdown_follows_the_clock_and_gives_way_slowly() -> None:
    clock = Clock()
    countdown = Countdown(clock)
    assert countdown.read(100.0) == 100.0
    clock.now = 10.0
    assert countdown.read(90.0) == 90.0
    clock.now = 11.0
    assert countdown.read(189.0) == pytest.approx(89 + 100 * (1 - math.exp(-0.1)))
    clock.now = 12.0
    assert countdown.read(0.0) == 0.0


def test_a_retried_shard_does_not_pass_the_end() -> None:
    reading = meter(Clock()).read(Computed(80, 2000, 0, 900))
    assert (reading.rows_done, reading.fraction) == (100, 1.0)


def test_nothing_to_do_is_done() -> None:
    reading = meter(Clock(), requests=0, prefill=0, decode=0).read(Computed())
    assert (reading.fraction, reading.rows_done) == (1.0, 100)


def test_the_bar_says_tokens_against_the_plan_then_rows() -> None:
    clock = Clock()
    measured = meter(clock, label=50)
    assert done_words(Progress("planning", 1234)) == "1,234 rows"
    assert done_words(measured.read(Computed())) == "prefill 0/600, label 0/50, decode 0/400, rows 0/100"
    clock.now = 2.0
    words = done_words(measured.read(Computed(25, 500, 25, 75)))
    assert words == "prefill 500/600, label 25/50, decode 75/400, rows 50/100, 300 tokens/s"
    near = Computed(100, 600, 50, 400, busy_seconds=2.0, limit_seconds=0.5)
    assert done_words(Progress("scoring", 100, 99, computed=near, work=Work(100, 0, 100, 600), errors=3)) == (
        "prefill 600/600, rows 99/100, 25.0% of the limit, 3 errors"
    )


def test_watchers_hear_until_they_leave() -> None:
    heard: list[str] = []
    with watch(lambda progress: heard.append(progress.stage)):
        tell(Progress("reading rows"))
    tell(Progress("planning"))
    assert heard == ["reading rows"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (0.4, "under 1 s"), (59, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_time_words(seconds: float, words: str) -> None:
    assert time_words(seconds) == words


def test_waits_are_those_for_whoever_has_the_device() -> None:
    clock = Clock()
    waits = Waits(clock)
    for now, holder in ((1.0, None), (2.0, "process 7"), (5.0, "process 8"), (9.0, None), (20.0, None)):
        clock.now = now
        waits.look(holder)
    assert waits.seconds == 7.0
