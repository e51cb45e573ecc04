"""DuckDB connections, each allowed no more than its use needs."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

MEMORY_LIMIT = "2GB"
BATCH_ROWS = 4096


@contextmanager
def working_connection(spill: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """In memory, for the joins of a run; what does not fit is spilled below `spill`."""
    connection = duckdb.connect(config={"temp_directory": str(spill / "spill"), "memory_limit": MEMORY_LIMIT})
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def view_connection(statements: Iterable[str], folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """In memory with the views that `statements` make; once they are there, nothing but `folder` can be read."""
    with tempfile.TemporaryDirectory(prefix="trunkline-sql-") as spill, working_connection(Path(spill)) as connection:
        for one in statements:
            connection.execute(one)
        _lock(connection, folder)
        yield connection


@contextmanager
def database_connection(database: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Somebody's database, read-only; its views may read files that lie beside it, and nothing else."""
    connection = duckdb.connect(str(database), read_only=True)
    try:
        _lock(connection, database.parent)
        yield connection
    finally:
        connection.close()


def _lock(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """From here on: no file outside `folder`, no extension, no other database, and no way to change that."""
    connection.execute("SET allowed_directories = $folders", {"folders": [str(folder)]})
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
