"""Calls of DuckDB that Ctrl-C ends, whichever thread computes.

DuckDB's binding looks for signals between two tasks of the thread that called it. Where DuckDB's other threads have
taken every task, that thread waits without looking (2.0.0), and about one long query in three never hears Ctrl-C.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

T = TypeVar("T")

# DuckDB forgets an interruption that comes before its query, so it is repeated.
EVERY_SECONDS = 0.02


def interruptible(connection: duckdb.DuckDBPyConnection, call: Callable[[], T]) -> T:
    """What `call` returns or raises, which computes on `connection`, in a thread of its own: this one hears signals.

    Raises KeyboardInterrupt as soon as DuckDB has stopped.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="duckdb") as thread:
        called = thread.submit(call)
        with interrupted(connection, called):
            return result_of(called)


def result_of(called: "Future[T]") -> T:
    """What a call in another thread returns or raises; this one hears signals meanwhile."""
    # A signal that comes as Python begins to wait does not end the wait: it is looked for after each.
    while not wait([called], timeout=EVERY_SECONDS).done:
        pass
    return called.result()


@contextmanager
def interrupted(connection: duckdb.DuckDBPyConnection, called: "Future[T]") -> Iterator[None]:
    """A call in another thread, which computes on `connection`, has ended behind this: it is interrupted if need be."""
    try:
        yield
    finally:
        while not called.done():
            with suppress(KeyboardInterrupt):  # a second Ctrl-C asks for what is under way
                connection.interrupt()
                wait([called], timeout=EVERY_SECONDS)


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
