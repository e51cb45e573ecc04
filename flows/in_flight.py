"""Runs a list of jobs a few at a time, in order, and looks up once in a while."""

from collections import deque
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from prefect.futures import PrefectFuture

T = TypeVar("T")


def run_in_flight(
    items: Iterable[T],
    submit: Callable[[T], PrefectFuture[Any]],
    finished: Callable[[T, PrefectFuture[Any]], bool],
    tick: Callable[[], None],
    *,
    width: int,
    seconds: float = 1.0,
) -> None:
    """Submits `items` in order with at most `width` unfinished.

    `finished` hears of each end as it comes; when it answers False nothing more is submitted, but what
    runs is waited for. `tick` is called at least every `seconds`.
    """
    waiting = deque(items)
    ended: SimpleQueue[tuple[T, PrefectFuture[Any]]] = SimpleQueue()
    running = 0
    while waiting or running:
        while waiting and running < width:
            _start(waiting.popleft(), submit, ended)
            running += 1
        tick()
        try:
            item, future = ended.get(timeout=seconds)
        except Empty:
            continue
        running -= 1
        if not finished(item, future):
            waiting.clear()
    tick()


def _start(
    item: T, submit: Callable[[T], PrefectFuture[Any]], ended: SimpleQueue[tuple[T, PrefectFuture[Any]]]
) -> None:
    submit(item).add_done_callback(lambda future: ended.put((item, future)))
