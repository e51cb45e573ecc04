"""A query's answer as a table in a DuckDB file of its own."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event

import duckdb
import pyarrow as pa

from engine.errors import UserError
from tasks.storage.commit import replacing
from tasks.storage.duck import new_database
from tasks.storage.interruptible import EVERY_SECONDS, interrupted, result_of
from tasks.storage.statements import identifier, message_of, statement

Handed = Queue[pa.RecordBatch]


def write_table_file(to: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Puts a database in the place of `to`, with one table, which has the name of the file.

    It appears as `replacing` has it. Raises OSError where it cannot be written, and what `batches` raises.
    """
    sql = statement("steps/table_file", table=identifier(to.stem))
    try:
        with replacing(to) as staged, new_database(staged, staged.parent) as connection:
            handed, last = Handed(maxsize=2), Event()
            connection.register("answer", pa.RecordBatchReader.from_batches(schema, _taken(handed, last)))
            _fill(connection, sql, batches, handed, last)
    except duckdb.Error as said:
        raise UserError(f"--to {to}: {message_of(said)}") from None


def _fill(
    connection: duckdb.DuckDBPyConnection, sql: str, batches: Iterable[pa.RecordBatch], handed: Handed, last: Event
) -> None:
    """Batches are computed in this thread, which hears Ctrl-C: DuckDB would ask for them in any of its own.

    `last` says that none follows those that are handed over.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="duckdb") as thread:
        writing = thread.submit(connection.execute, sql)
        with interrupted(connection, writing):
            try:
                for batch in batches:
                    _hand(handed, batch, writing)
                    if writing.done():  # it failed, and says how
                        break
            finally:
                last.set()
            result_of(writing)


def _hand(handed: Handed, batch: pa.RecordBatch, writing: "Future[duckdb.DuckDBPyConnection]") -> None:
    """To who writes, unless that has failed."""
    while not writing.done():
        with suppress(Full):
            handed.put(batch, timeout=EVERY_SECONDS)
            return


def _taken(handed: Handed, last: Event) -> Iterator[pa.RecordBatch]:
    while not (last.is_set() and handed.empty()):
        with suppress(Empty):
            yield handed.get(timeout=EVERY_SECONDS)
