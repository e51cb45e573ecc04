"""A time left that goes down with the clock and gives way to new estimates slowly."""

import math
import time
from collections.abc import Callable

# An estimate that stays is two thirds believed after so long; sooner, while the first is younger than that.
SECONDS_TO_BELIEVE = 10.0


class Countdown:
    """Reads as the first estimate does, less the time since; what later ones say differently is taken in bit by bit."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at: float | None = None
        self._since = 0.0
        self._left = 0.0

    def read(self, estimate: float) -> float:
        """Seconds left, where `estimate` is what the moment says. Nothing left is believed at once."""
        now = self._clock()
        if self._at is None:
            self._since, self._left = now, estimate
        elif not estimate:
            self._left = estimate
        else:
            passed = now - self._at
            expected = max(0.0, self._left - passed)
            self._left = expected + (estimate - expected) * self._believed(passed, now - self._since)
        self._at = now
        return self._left

    @staticmethod
    def _believed(passed: float, age: float) -> float:
        return 1 - math.exp(-passed / min(SECONDS_TO_BELIEVE, age)) if age else 0.0
