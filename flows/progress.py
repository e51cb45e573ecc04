"""How far the scoring is, and how fast: plain numbers that a bar and an artifact show."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from engine.plan import Shard
from engine.planning.cost import Prices
from engine.planning.steps_left import decode_steps_left
from flows.countdown import Countdown
from flows.token_costs import TokenCosts
from tasks.answers_seen import AnswersSeen
from tasks.workers import Computed

WINDOW_SECONDS = 20.0
FIRST_READINGS = 4


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do: all rows, those done before this run, and the tokens that the plan computes for the others.

    `label` tokens are those of labels; `decode` tokens are generated ones at their most, which is `most` an answer.
    `prices` are what the plan expects of the device.
    """

    rows: int
    rows_done: int
    requests: int
    prefill: int
    label: int = 0
    decode: int = 0
    most: float = 0.0
    prices: Prices = field(default_factory=Prices)


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


class StepFill:
    """How many tokens a step has in which the mean token is: steps that only decode have few, and few tokens."""

    def __init__(self) -> None:
        self._squares = self._tokens = 0.0

    def learn(self, computed: Computed) -> None:
        """What some steps computed."""
        if computed.steps:
            self._squares += computed.tokens**2 / computed.steps
            self._tokens += computed.tokens

    @property
    def tokens(self) -> float:
        return self._squares / self._tokens if self._tokens else math.inf


class Meter:
    """Turns the totals of a run so far into `Progress`. Neither the fraction nor the time left jumps."""

    def __init__(self, work: Work, answers: AnswersSeen, clock: Callable[[], float] = time.monotonic) -> None:
        """`answers` are the run's, as they end."""
        self._work = work
        self._answers = answers
        self._clock = clock
        self._costs = TokenCosts(work.prices)
        self._countdown = Countdown(clock)
        self._readings: deque[tuple[float, Computed]] = deque()
        self._fraction = 0.0
        self._fill = StepFill()

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

    def read(self, computed: Computed, engines: int = 1) -> Progress:
        """What `engines` have computed together."""
        self._learn(computed)
        left = self._seconds_left(computed, engines)
        done = self._costs.seconds(computed.prompt, computed.decode, computed.steps) or 0.0
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
            self._shown(left),
        )

    def _shown(self, left: float | None) -> float | None:
        """The first readings, among them that of the first step, may be far off: nothing is counted down from them."""
        if left is None or self._costs.num_readings < FIRST_READINGS:
            return left
        return self._countdown.read(left)

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
            new = computed - before
            self._costs.learn(now - at, new.prompt, new.decode, new.steps)
            self._fill.learn(new)
        self._readings.append((now, computed))
        while len(self._readings) > 2 and now - self._readings[0][0] > WINDOW_SECONDS:
            self._readings.popleft()

    def _seconds_left(self, computed: Computed, engines: int) -> float | None:
        """Rows finish late in a shard and often before their cap, so neither rows nor the plan alone say it."""
        work = self._work
        if computed.requests >= work.requests:
            return 0.0
        prompt = max(0, work.prefill + work.label - computed.prompt)
        decode, steps = self._decode_left(computed, engines)
        return self._costs.seconds(prompt, decode, max(steps, prompt / self._fill.tokens))

    def _decode_left(self, computed: Computed, engines: int) -> tuple[float, float]:
        """Tokens of answers that go on, and of those that have not begun, and the steps that they take."""
        if not self._work.most:
            return 0.0, 0.0
        lengths, most = self._answers.lengths(computed.going), max(1, round(self._work.most))
        waiting = max(0.0, self._work.decode / self._work.most - self._answers.count - len(computed.going))
        tokens = waiting * lengths.mean(most) + lengths.tokens_left(computed.going, most)
        return tokens, decode_steps_left(lengths, computed.going, waiting, most, engines)

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
