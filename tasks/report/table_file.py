"""A query's answer as a table in a DuckDB file of its own."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import duckdb
import pyarrow as pa

from engine.errors import UserError
from tasks.storage.commit import replacing
from tasks.storage.duck import database_connection, new_database
from tasks.storage.interruptible import CallBeside, fetch_all
from tasks.storage.statements import identifier, message_of, statement

_LOOK_SECONDS = 0.02
_MOST_WAITING = 2


class HandedBatches:
    """Batches on their way from who computes them to who writes them, a few at a time; a signal may come anywhere."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[pa.RecordBatch] = SimpleQueue()
        self._places: SimpleQueue[None] = SimpleQueue()
        for _ in range(_MOST_WAITING):
            self._places.put(None)
        self.is_last = False  # none follows those that wait

    def hand(self, batch: pa.RecordBatch, writing: CallBeside[Any]) -> None:
        """To who writes, unless that has ended."""
        while not writing.is_done:
            with suppress(Empty):
                self._places.get(timeout=_LOOK_SECONDS)
                self._waiting.put(batch)
                return

    def taken(self) -> Iterator[pa.RecordBatch]:
        while not (self.is_last and self._waiting.empty()):
            with suppress(Empty):
                batch = self._waiting.get(timeout=_LOOK_SECONDS)
                self._places.put(None)
                yield batch


def check_table_file(to: Path) -> None:
    """Raises UserError where `to` is there, and is not what an earlier `--to` made: it would be lost."""
    if not to.is_file() or not to.stat().st_size:
        return
    try:
        with database_connection(to.resolve()) as connection:
            found = fetch_all(connection, statement("steps/database_content"), {})
    except duckdb.Error as said:
        raise UserError(f"--to {to}: cannot be replaced: {message_of(said)}; name another file") from None
    others = [name for name, kind in found if (name, kind) != (to.stem, "table")]
    if others:
        has = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise UserError(f"--to {to}: has {has}, which would be lost; name a new file, and ATTACH that one there")


def write_table_file(to: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Puts a database in the place of `to`, with one table, which has the name of the file.

    It appears as `replacing` has it. Raises OSError where it cannot be written, and what `batches` raises.
    """
    sql = statement("steps/table_file", table=identifier(to.stem))
    try:
        with replacing(to) as staged, new_database(staged, staged.parent) as connection:
            handed = HandedBatches()
            connection.register("answer", pa.RecordBatchReader.from_batches(schema, handed.taken()))
            _fill(CallBeside(connection, partial(connection.execute, sql)), batches, handed)
    except duckdb.Error as said:
        raise UserError(f"--to {to}: {message_of(said)}") from None


def _fill(writing: CallBeside[Any], batches: Iterable[pa.RecordBatch], handed: HandedBatches) -> None:
    """Batches are computed in this thread, which hears Ctrl-C: DuckDB would ask for them in any of its own."""
    try:
        writing.start()
        for batch in batches:
            handed.hand(batch, writing)
            if writing.is_done:  # it failed, and says how
                break
        handed.is_last = True
        writing.result()
    finally:
        handed.is_last = True
        writing.end()
