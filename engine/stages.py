"""What an engine is busy with while it does not compute yet, for whoever watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str], None]
_listeners: list[Listener] = []


@contextmanager
def hear_stages(listener: Listener) -> Iterator[None]:
    """Calls `listener` with a few words whenever an engine of this process begins something, in the engine's thread."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def enter(stage: str) -> None:
    for listener in tuple(_listeners):
        listener(stage)
