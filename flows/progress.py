"""How far the scoring is, and how fast: plain numbers that a bar and an artifact show."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

WINDOW_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do: all rows, those done before this run, and the cost of the others in tokens.

    `tokens` is the plan's number to compute, generated tokens at their most.
    """

    rows: int
    rows_done: int
    requests: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a run. `seconds_left` is None until a speed is known.

    `waiting_for` names the process that has the device.
    """

    stage: str
    rows: int = 0
    rows_done: int = 0
    tokens_per_second: float = 0.0
    seconds_left: float | None = None
    waiting_for: str | None = None

    @property
    def fraction(self) -> float:
        return self.rows_done / self.rows if self.rows else 0.0


class Meter:
    """Turns the totals of a run so far into `Progress`."""

    def __init__(self, work: Work, clock: Callable[[], float] = time.monotonic) -> None:
        self._work = work
        self._clock = clock
        self._readings: deque[tuple[float, int]] = deque()

    def read(self, requests: int, tokens: int) -> Progress:
        """Progress after `requests` were finished and `tokens` computed."""
        return Progress("scoring", self._work.rows, self._rows_done(requests), *self._speed(requests, tokens))

    def _rows_done(self, requests: int) -> int:
        work = self._work
        if not work.requests:
            return work.rows
        # Equal rows are one request; which of them are done is not worth asking for while it runs.
        share = min(1.0, requests / work.requests)
        return work.rows_done + int(share * (work.rows - work.rows_done))

    def _speed(self, requests: int, tokens: int) -> tuple[float, float | None]:
        now = self._clock()
        self._readings.append((now, tokens))
        while now - self._readings[0][0] > WINDOW_SECONDS:
            self._readings.popleft()
        since, first = self._readings[0]
        speed = (tokens - first) / (now - since) if now > since else 0.0
        if speed <= 0:
            return 0.0, None
        # Text often ends before its cap, so tokens alone would promise too long a wait.
        by_tokens = tokens / self._work.tokens if self._work.tokens else 1.0
        by_requests = requests / self._work.requests if self._work.requests else 1.0
        done = min(1.0, max(by_tokens, by_requests))
        left = max(0, self._work.tokens - tokens) if done < 1 else 0
        return speed, left / speed


Watcher = Callable[[Progress], None]
_watchers: list[Watcher] = []


@contextmanager
def watch(watcher: Watcher) -> Iterator[None]:
    """Calls `watcher` with every `Progress` of the runs in this process."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def tell(progress: Progress) -> None:
    for watcher in tuple(_watchers):
        watcher(progress)
