"""What an engine is busy with while it does not compute yet, for whoever watches."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str], None]
_listeners: list[Listener] = []
_thread = threading.local()


@contextmanager
def hear_stages(listener: Listener) -> Iterator[None]:
    """Calls `listener` with a few words whenever an engine of this process begins something, in the engine's thread."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def abandonable(check: Callable[[], None]) -> Iterator[None]:
    """What this thread does may be left at each `checkpoint`, where `check` raises once it is not wanted any more."""
    _thread.check = check
    try:
        yield
    finally:
        del _thread.check


def checkpoint() -> None:
    """Raises where what this thread does is not wanted any more."""
    check = getattr(_thread, "check", None)
    if check is not None:
        check()


def enter(stage: str) -> None:
    checkpoint()
    for listener in tuple(_listeners):
        listener(stage)
