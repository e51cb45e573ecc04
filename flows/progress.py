"""How far the scoring is, and how fast: plain numbers that a bar and an artifact show."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from engine.plan import Shard
from flows.countdown import Countdown
from flows.token_costs import TokenCosts
from tasks.answers_seen import AnswersSeen
from tasks.workers import Computed

WINDOW_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do: all rows, those done before this run, and the tokens that the plan computes for the others.

    `label` tokens are those of labels; `decode` tokens are generated ones at their most, which is `most` an answer.
    """

    rows: int
    rows_done: int
    requests: int
    prefill: int
    label: int = 0
    decode: int = 0
    most: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a run. `fraction` is of the time that it takes; `seconds_left` is None until a speed is known.

    `waiting_for` names the process that has the device. `errors` are rows that cannot be scored, and requests that
    failed.
    """

    stage: str
    rows: int = 0
    rows_done: int = 0
    work: Work | None = None
    computed: Computed = field(default_factory=Computed)
    fraction: float = 0.0
    tokens_per_second: float = 0.0
    seconds_left: float | None = None
    waiting_for: str | None = None
    errors: int = 0


class Meter:
    """Turns the totals of a run so far into `Progress`. Neither the fraction nor the time left jumps."""

    def __init__(self, work: Work, answers: AnswersSeen, clock: Callable[[], float] = time.monotonic) -> None:
        """`answers` are the run's, as they end."""
        self._work = work
        self._answers = answers
        self._clock = clock
        self._costs = TokenCosts()
        self._countdown = Countdown(clock)
        self._readings: deque[tuple[float, Computed]] = deque()
        self._fraction = 0.0

    def skip(self, shard: Shard, rows: int) -> None:
        """A shard was done before, with so many `rows` of the table: nothing of it is computed."""
        work = self._work
        self._work = replace(
            work,
            rows_done=min(work.rows, work.rows_done + rows),
            requests=work.requests - (shard.last - shard.first),
            prefill=work.prefill - shard.prefill_tokens,
            decode=work.decode - shard.decode_tokens,
        )

    def restart(self) -> None:
        """Costs are measured from the next reading on: until now nothing could be computed."""
        self._readings.clear()

    def read(self, computed: Computed) -> Progress:
        self._learn(computed)
        left = self._seconds_left(computed)
        done = self._costs.seconds(computed.prompt, computed.decode) or 0.0
        fraction = 1.0 if computed.requests >= self._work.requests else done / (done + left) if left else 0.0
        self._fraction = max(self._fraction, fraction)
        return Progress(
            "scoring",
            self._work.rows,
            self._rows_done(computed.requests),
            self._work,
            computed,
            self._fraction,
            self._speed(),
            self._countdown.read(left) if left is not None else None,
        )

    def _rows_done(self, requests: int) -> int:
        work = self._work
        if not work.requests:
            return work.rows
        # Equal rows are one request; which of them are done is not worth asking for while it runs.
        share = min(1.0, requests / work.requests)
        return work.rows_done + int(share * (work.rows - work.rows_done))

    def _learn(self, computed: Computed) -> None:
        """Keeps the readings at which something was computed, of the last seconds."""
        now = self._clock()
        if self._readings:
            at, before = self._readings[-1]
            if computed.tokens == before.tokens:
                return
            self._costs.learn(now - at, computed.prompt - before.prompt, computed.decode - before.decode)
        self._readings.append((now, computed))
        while len(self._readings) > 2 and now - self._readings[0][0] > WINDOW_SECONDS:
            self._readings.popleft()

    def _seconds_left(self, computed: Computed) -> float | None:
        """Rows finish late in a shard and often before their cap, so neither rows nor the plan alone say it."""
        work = self._work
        if computed.requests >= work.requests:
            return 0.0
        prompt = max(0, work.prefill + work.label - computed.prompt)
        return self._costs.seconds(prompt, self._decode_left(computed))

    def _decode_left(self, computed: Computed) -> float:
        """Tokens of answers that go on, and of those that have not begun."""
        if not self._work.most:
            return 0.0
        lengths, most = self._answers.lengths(computed.going), max(1, round(self._work.most))
        waiting = self._work.decode / self._work.most - self._answers.count - len(computed.going)
        return max(0.0, waiting) * lengths.mean(most) + lengths.tokens_left(computed.going, most)

    def _speed(self) -> float:
        (since, first), (now, last) = self._readings[0], self._readings[-1]
        return (last.tokens - first.tokens) / (now - since) if now > since else 0.0


class Waits:
    """For how long another run has had the device, looked at once in a while."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = 0.0
        self._clock = clock
        self._since: float | None = None

    def look(self, holder: str | None) -> None:
        """`holder` is who has the device now, None where this run has it."""
        now = self._clock()
        if self._since is not None:
            self.seconds += now - self._since
        self._since = now if holder is not None else None


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
