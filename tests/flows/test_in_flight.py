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

    def next_of(self, items: list[int]) -> Callable[[], int | None]:
        """In order, while fewer than three run."""
        return lambda: items.pop(0) if items and len(self._running) < 3 else None


def run(bench: Bench, items: list[int]) -> None:
    run_in_flight(bench.next_of(items), bench.submit, bench.finished, bench.tick, seconds=0.01)  # type: ignore[arg-type]


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


def test_what_ends_may_bring_more() -> None:
    bench, items = Bench(), [1]

    def finished(item: int, future: object) -> bool:
        items.extend([2] if item == 1 else [])
        return bench.finished(item, future)

    run_in_flight(bench.next_of(items), bench.submit, finished, bench.tick, seconds=0.01)  # type: ignore[arg-type]
    assert bench.started == bench.ended == [1, 2]


def test_no_items_is_no_work() -> None:
    bench = Bench()
    run(bench, [])
    assert bench.started == []


def test_it_looks_up_while_it_waits() -> None:
    slow = Pending()
    timer = threading.Timer(0.2, slow.end)
    timer.start()
    ticks: list[int] = []
    items = [1]
    run_in_flight(
        lambda: items.pop() if items else None,
        lambda _: slow,  # type: ignore[arg-type,return-value]
        lambda *_: True,
        lambda: ticks.append(1),
        seconds=0.01,
    )
    timer.join()
    assert len(ticks) > 3


def test_a_failing_submit_is_not_swallowed() -> None:
    def fail(item: int) -> Pending:
        raise RuntimeError(item)

    with pytest.raises(RuntimeError):
        run_in_flight(lambda: 1, fail, lambda *_: True, lambda: None)  # type: ignore[arg-type]
