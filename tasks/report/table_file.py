"""A query's answer as a table in a DuckDB file of its own."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

import duckdb
import pyarrow as pa

from engine.errors import UserError
from tasks.storage.duck import new_database
from tasks.storage.file_mode import file_mode
from tasks.storage.statements import first_line, identifier, statement


def write_table_file(to: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Puts a database in the place of `to`, with one table, which has the name of the file.

    It appears whole or not at all, what was there stays until then. Raises OSError where it cannot be written, and what
    `batches` raises.
    """
    problems: list[BaseException] = []
    folder = Path(mkdtemp(prefix=".trunkline-", dir=to.absolute().parent))
    staged = folder / to.name
    try:
        with new_database(staged, folder) as connection:
            connection.register("answer", pa.RecordBatchReader.from_batches(schema, _noting(batches, problems)))
            connection.execute(statement("steps/table_file", table=identifier(to.stem)))
        staged.chmod(file_mode())
        os.replace(staged, to)
    except duckdb.Error as said:
        if problems:
            raise problems[0] from None
        raise UserError(f"--to {to}: {first_line(said)}") from None
    finally:
        staged.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()


def _noting(batches: Iterable[pa.RecordBatch], problems: list[BaseException]) -> Iterator[pa.RecordBatch]:
    """DuckDB, which reads them, makes one text of an exception and where it was raised."""
    try:
        yield from batches
    except (Exception, KeyboardInterrupt) as problem:
        problems.append(problem)
        raise
