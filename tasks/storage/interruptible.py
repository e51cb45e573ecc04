"""Calls of DuckDB that Ctrl-C ends, whichever thread computes.

DuckDB's binding looks for signals between two tasks of the thread that called it. Where DuckDB's other threads have
taken every task, that thread waits without looking (2.0.0), and about one long query in three never hears Ctrl-C.
"""

from _thread import allocate_lock, start_new_thread
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import duckdb
import pyarrow as pa

T = TypeVar("T")

# DuckDB forgets an interruption that comes before its query, so it is repeated.
_EVERY_SECONDS = 0.02


class CallBeside(Generic[T]):
    """A call that computes on `connection` in a thread of its own, from `start` on, while this one hears signals.

    A signal may come at any place of ours: a lock of `threading` that is written in Python, as those of its conditions,
    events and queues are, and of futures, could be left locked by it. So nothing of the kind is used.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, call: Callable[[], T]) -> None:
        self._connection, self._call = connection, call
        self._is_wanted, self._has_begun, self.is_done = True, False, False
        self._over = allocate_lock()
        self._over.acquire()
        self._problem: BaseException | None = None

    def start(self) -> None:
        """Whoever calls this calls `end` in any case."""
        start_new_thread(self._compute, ())

    def result(self) -> T:
        """What the call returns or raises, once it has ended."""
        while not self.is_done:
            self._over.acquire(timeout=_EVERY_SECONDS)
        if self._problem is not None:
            raise self._problem
        return self._result

    def end(self) -> None:
        """Behind this the call has ended, or never begins: it is interrupted if need be."""
        self._is_wanted = False
        while self._has_begun and not self.is_done:
            with suppress(KeyboardInterrupt):  # a second Ctrl-C asks for what is under way
                self._connection.interrupt()
                self._over.acquire(timeout=_EVERY_SECONDS)

    def _compute(self) -> None:
        self._has_begun = True  # before it looks, as `end` looks at this behind its word
        try:
            if self._is_wanted:
                self._result = self._call()
        except BaseException as problem:  # whoever waits raises it
            self._problem = problem
        finally:
            self.is_done = True
            self._over.release()


def interruptible(connection: duckdb.DuckDBPyConnection, call: Callable[[], T]) -> T:
    """What `call` returns or raises, which computes on `connection`.

    Raises KeyboardInterrupt as soon as DuckDB has stopped.
    """
    beside = CallBeside(connection, call)
    try:
        beside.start()
        return beside.result()
    finally:
        beside.end()


def fetch_all(connection: duckdb.DuckDBPyConnection, sql: str, values: Mapping[str, object]) -> list[Any]:
    """The rows of one statement, which `interruptible` waits for."""
    return interruptible(connection, lambda: connection.execute(sql, values).fetchall())


def open_reader(
    connection: duckdb.DuckDBPyConnection, relation: duckdb.DuckDBPyRelation, batch_rows: int
) -> pa.RecordBatchReader:
    """What `batches_of` reads; all that comes before a query's first row is computed here."""
    return interruptible(connection, lambda: relation.to_arrow_reader(batch_rows))


def batches_of(connection: duckdb.DuckDBPyConnection, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """Rows as they are computed, each batch waited for by `interruptible`.

    Whoever leaves before the last row does not wait for it.
    """
    try:
        while (batch := interruptible(connection, lambda: next(reader, None))) is not None:
            yield batch
    finally:
        connection.interrupt()
        reader.close()


@contextmanager
def ctrl_c() -> Iterator[None]:
    """Ctrl-C stays what it is: DuckDB makes a RuntimeError of it, where the thread that called it computes."""
    try:
        yield
    except RuntimeError as problem:
        if "interrupted" not in str(problem).lower():
            raise
        raise KeyboardInterrupt from None
