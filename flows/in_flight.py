"""Runs jobs side by side, as many as there is room for, and looks up once in a while."""

from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from prefect.futures import PrefectFuture

T = TypeVar("T")


def run_in_flight(
    next_item: Callable[[], T | None],
    submit: Callable[[T], PrefectFuture[Any]],
    finished: Callable[[T, PrefectFuture[Any]], bool],
    tick: Callable[[], None],
    *,
    seconds: float = 1.0,
) -> None:
    """Submits what `next_item` says, until nothing runs and it says None, which is that nothing is to begin now.

    `finished` hears of each end as it comes; when it answers False nothing more is submitted, but what
    runs is waited for. `tick` is called at least every `seconds`.
    """
    ended: SimpleQueue[tuple[T, PrefectFuture[Any]]] = SimpleQueue()
    running, is_stopped = 0, False
    while True:
        while not is_stopped and (item := next_item()) is not None:
            _start(item, submit, ended)
            running += 1
        tick()
        if not running:
            return
        try:
            item, future = ended.get(timeout=seconds)
        except Empty:
            continue
        running -= 1
        is_stopped = not finished(item, future) or is_stopped


def _start(
    item: T, submit: Callable[[T], PrefectFuture[Any]], ended: SimpleQueue[tuple[T, PrefectFuture[Any]]]
) -> None:
    submit(item).add_done_callback(lambda future: ended.put((item, future)))
