"""Ctrl-C and SIGTERM end a run within seconds, whatever its threads are in the middle of."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

# Enough to end a step, publish and record the end; what is cut off is as after a kill.
GRACE_SECONDS = 4.0


@contextmanager
def stopping(leave: Callable[[int], NoReturn], grace: float = GRACE_SECONDS) -> Iterator[Callable[[], NoReturn]]:
    """A first signal raises KeyboardInterrupt in the main thread, which may tidy up and call what the context gives.

    That, a second signal, or the end of `grace` seconds, whichever is first, calls `leave` with the first signal.
    """
    told, heard = socket.socketpair()
    told.setblocking(False)
    watcher = _Watcher(heard, leave, grace)
    before = signal.signal(signal.SIGTERM, watcher.interrupt)
    # Prefect has a SIGTERM handler of its own while a flow runs; the interpreter writes here whoever handles it.
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    try:
        yield watcher.leave_now
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, before)
        told.close()


class _Watcher:
    def __init__(self, heard: socket.socket, leave: Callable[[int], NoReturn], grace: float) -> None:
        self._heard = heard
        self._leave = leave
        self._grace = grace
        self._first: int | None = None
        self._leaving = threading.Lock()
        threading.Thread(target=self._watch, name="signals", daemon=True).start()

    def interrupt(self, number: int, _: object) -> NoReturn:
        self._first = self._first or number
        raise KeyboardInterrupt

    def leave_now(self) -> NoReturn:
        self._leaving.acquire()  # one thread leaves, once
        self._leave(self._first or signal.SIGINT)

    def _watch(self) -> None:
        with self._heard as heard:
            first = heard.recv(1)
            if not first:
                return
            self._first = self._first or first[0]
            heard.settimeout(self._grace)
            try:
                if not heard.recv(1):
                    return
            except TimeoutError:
                pass
        self.leave_now()
