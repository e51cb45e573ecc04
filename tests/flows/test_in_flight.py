import threading
from collections.abc import Callable
from typing import Any

import pytest

from flows.in_flight import run_in_flight


class Pending:
    """A future that the test ends itself."""

    def __init__(self) -> None:
        self._told: list[Callable[[Any], None]] = []

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        self._told.append(fn)

    def end(self) -> None:
        for fn in self._told:
            fn(self)


class Bench:
    """Ends the oldest running item at every tick."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.started: list[int] = []
        self.ended: list[int] = []
        self.most = 0
        self._stop_at = stop_at
        self._running: list[tuple[int, Pending]] = []

    def submit(self, item: int) -> Pending:
        self.started.append(item)
        self._running.append((item, Pending()))
        self.most = max(self.most, len(self._running))
        return self._running[-1][1]

    def tick(self) -> None:
        if self._running:
            self._running.pop(0)[1].end()

    def finished(self, item: int, future: object) -> bool:
        self.ended.append(item)
        return item != self._stop_at


def run(bench: Bench, items: list[int]) -> None:
    run_in_flight(items, bench.submit, bench.finished, bench.tick, width=3, seconds=0.01)  # type: ignore[arg-type]


def test_items_run_in_order_and_no_more_than_the_width_at_once() -> None:
    bench = Bench()
    run(bench, list(range(10)))
    assert bench.started == bench.ended == list(range(10))
    assert bench.most == 3


def test_after_a_stop_what_runs_is_waited_for() -> None:
    bench = Bench(stop_at=2)
    run(bench, list(range(10)))
    assert bench.started == bench.ended
    assert bench.started[-1] == 4


def test_no_items_is_no_work() -> None:
    bench = Bench()
    run(bench, [])
    assert bench.started == []


def test_it_looks_up_while_it_waits() -> None:
    slow = Pending()
    timer = threading.Timer(0.2, slow.end)
    timer.start()
    ticks: list[int] = []
    run_in_flight([1], lambda _: slow, lambda *_: True, lambda: ticks.append(1), width=1, seconds=0.01)  # type: ignore[arg-type,return-value]
    timer.join()
    assert len(ticks) > 3


def test_a_failing_submit_is_not_swallowed() -> None:
    def fail(item: int) -> Pending:
        raise RuntimeError(item)

    with pytest.raises(RuntimeError):
        run_in_flight([1], fail, lambda *_: True, lambda: None, width=1)  # type: ignore[arg-type]
