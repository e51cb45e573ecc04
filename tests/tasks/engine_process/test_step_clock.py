"""When an engine counts as one that hangs."""

from tasks.engine_process.step_clock import LOOK_SECONDS, StepClock


class Times:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def seconds_until_over(clock: StepClock, times: Times, progress: object = "a", *, most: float = 1000.0) -> float | None:
    started = times.now
    while times.now - started < most:
        times.now += LOOK_SECONDS
        if clock.is_over(progress, is_busy=True):
            return times.now - started
    return None


def test_a_step_that_does_not_end_in_time() -> None:
    clock = StepClock(10.0, times := Times())
    assert not clock.is_over("a", is_busy=True)
    assert seconds_until_over(clock, times) == 10.0


def test_each_step_has_all_of_the_time() -> None:
    clock = StepClock(10.0, times := Times())
    for step in range(20):
        assert not clock.is_over(step, is_busy=True)
        assert seconds_until_over(clock, times, step, most=9.0) is None
    assert seconds_until_over(clock, times, 19) == 1.0


def test_whoever_has_no_work_is_not_late() -> None:
    clock = StepClock(10.0, times := Times())
    for _ in range(100):
        times.now += LOOK_SECONDS
        assert not clock.is_over("a", is_busy=False)
    assert seconds_until_over(clock, times) == 10.0


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """As after SIGSTOP and SIGCONT of the run, whose engine had nobody to tell of its steps."""
    clock = StepClock(10.0, times := Times())
    clock.is_over("a", is_busy=True)
    times.now += 3600.0
    assert not clock.is_over("a", is_busy=True)
    assert seconds_until_over(clock, times) == 10.0 - 2 * LOOK_SECONDS
