"""A query's answer as a table in a DuckDB file of its own."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from engine.errors import UserError
from tasks.storage.commit import replacing
from tasks.storage.duck import new_database
from tasks.storage.statements import first_line, identifier, statement


def write_table_file(to: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Puts a database in the place of `to`, with one table, which has the name of the file.

    It appears as `replacing` has it. Raises OSError where it cannot be written, and what `batches` raises.
    """
    problems: list[BaseException] = []
    try:
        with replacing(to) as staged, new_database(staged, staged.parent) as connection:
            connection.register("answer", pa.RecordBatchReader.from_batches(schema, _noting(batches, problems)))
            connection.execute(statement("steps/table_file", table=identifier(to.stem)))
    except duckdb.Error as said:
        if problems:
            raise problems[0] from None
        raise UserError(f"--to {to}: {first_line(said)}") from None


def _noting(batches: Iterable[pa.RecordBatch], problems: list[BaseException]) -> Iterator[pa.RecordBatch]:
    """DuckDB, which reads them, makes one text of an exception and where it was raised."""
    try:
        yield from batches
    except (Exception, KeyboardInterrupt) as problem:
        problems.append(problem)
        raise
