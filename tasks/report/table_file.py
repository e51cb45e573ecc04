"""A query's answer as a table in a DuckDB file of its own."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from engine.errors import UserError
from tasks.storage.commit import replacing
from tasks.storage.duck import new_database
from tasks.storage.interruptible import interruptible
from tasks.storage.statements import first_line, identifier, statement

# DuckDB's own.
_GROUP_ROWS = 122_880


def write_table_file(to: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Puts a database in the place of `to`, with one table, which has the name of the file.

    It appears as `replacing` has it. Raises OSError where it cannot be written, and what `batches` raises.
    """
    table = identifier(to.stem)
    try:
        with replacing(to) as staged, new_database(staged, staged.parent) as connection:
            connection.begin()
            _write(connection, statement("steps/table_file", table=table), schema.empty_table())
            # DuckDB does not pull them itself: Ctrl-C would not reach the query that computes them.
            for rows in _gathered(batches):
                _write(connection, statement("steps/table_rows", table=table), pa.Table.from_batches(rows, schema))
            connection.commit()
    except duckdb.Error as said:
        raise UserError(f"--to {to}: {first_line(said)}") from None


def _write(connection: duckdb.DuckDBPyConnection, sql: str, rows: pa.Table) -> None:
    connection.register("answer", rows)
    interruptible(connection, lambda: connection.execute(sql))


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """As many as make a group of a table's rows."""
    gathered: list[pa.RecordBatch] = []
    for batch in batches:
        gathered.append(batch)
        if sum(map(len, gathered)) >= _GROUP_ROWS:
            yield gathered
            gathered = []
    yield gathered
