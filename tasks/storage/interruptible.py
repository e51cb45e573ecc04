"""Calls of DuckDB that Ctrl-C ends, whichever thread computes.

DuckDB's binding looks for signals between two tasks of the thread that called it. Where DuckDB's other threads have
taken every task, that thread waits without looking (2.0.0), and about one long query in three never hears Ctrl-C.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TypeVar

import duckdb

T = TypeVar("T")

# DuckDB forgets an interruption that comes before its query, so it is repeated.
_EVERY_SECONDS = 0.02


def interruptible(connection: duckdb.DuckDBPyConnection, call: Callable[[], T]) -> T:
    """What `call` returns or raises, which computes on `connection`, in a thread of its own: this one hears signals.

    Raises KeyboardInterrupt as soon as DuckDB has stopped.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="duckdb") as thread:
        called = thread.submit(call)
        try:
            # A signal that comes as Python begins to wait does not end the wait: it is looked for after each.
            while not wait([called], timeout=_EVERY_SECONDS).done:
                pass
            return called.result()
        finally:
            while not called.done():
                with suppress(KeyboardInterrupt):  # a second Ctrl-C asks for what is under way
                    connection.interrupt()
                    wait([called], timeout=_EVERY_SECONDS)


@contextmanager
def ctrl_c() -> Iterator[None]:
    """Ctrl-C stays what it is: DuckDB makes a RuntimeError of it, where the thread that called it computes."""
    try:
        yield
    except RuntimeError as problem:
        if "interrupted" not in str(problem).lower():
            raise
        raise KeyboardInterrupt from None
