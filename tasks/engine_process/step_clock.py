"""How long an engine has had work and ended no step."""

import time
from collections.abc import Callable

LOOK_SECONDS = 0.5


class StepClock:
    """Looked at every `LOOK_SECONDS`. Time in which nobody looks, as while this process is stopped, does not count."""

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._looked = clock()
        self._progress: object = None
        self._waited = 0.0

    def is_over(self, progress: object, *, is_busy: bool) -> bool:
        """Whether the limit is reached: `progress` is another whenever a step ended.

        An engine that has nothing to compute, or cannot yet, is not late.
        """
        now = self._clock()
        passed, self._looked = now - self._looked, now
        is_stuck = is_busy and progress == self._progress
        self._progress = progress
        self._waited = self._waited + min(passed, 2 * LOOK_SECONDS) if is_stuck else 0.0
        return self._waited >= self._limit
