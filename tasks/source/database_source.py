"""A source that is a query on a DuckDB database: opened read-only, copied once, closed again."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from engine.errors import UserError
from tasks.storage.arrow_columns import arrow_columns
from tasks.storage.duck import BATCH_ROWS, database_connection
from tasks.storage.interruptible import batches_of, interruptible, open_reader
from tasks.storage.statements import message_of, single_select, statement

# Errors in whose words DuckDB quotes a value: a cell, which may be a prompt. A line for the user is in logs as well.
_OF_VALUES = (duckdb.ConversionException, duckdb.InvalidInputException, duckdb.OutOfRangeException)


def read_schema(database: Path, query: str) -> pa.Schema:
    with _query(database, query) as (connection, relation):
        none = arrow_columns(relation).limit(0)
        return interruptible(connection, none.to_arrow_table).schema


def read_batches(database: Path, query: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with _query(database, query) as (connection, relation):
        places = [relation.columns.index(name) for name in columns]
        yield from batches_of(connection, open_reader(connection, arrow_columns(relation, places), BATCH_ROWS))


@contextmanager
def _query(database: Path, query: str) -> Iterator[tuple[duckdb.DuckDBPyConnection, duckdb.DuckDBPyRelation]]:
    """The query's relation, and the connection that computes it.

    Every failure of the database or the query is the user's to mend.
    """
    query = single_select(query, "source.duckdb.query")
    try:
        with _opened(database) as connection:
            # A view takes the text as it is: one statement, with whatever semicolon and comment end it.
            connection.execute(f"{statement('steps/source_view')} {query}")
            yield connection, connection.sql(statement("steps/source_rows"))
    except _OF_VALUES as problem:
        raise UserError(f"source.duckdb.query: {_without_values(message_of(problem))}") from None
    except (duckdb.Error, pa.ArrowNotImplementedError) as problem:
        raise UserError(f"source.duckdb.query: {message_of(problem)}") from None


@contextmanager
def _opened(database: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(database_connection(database))
        except duckdb.Error as problem:
            said = "another process has it open for writing" if "lock" in str(problem).lower() else message_of(problem)
            if isinstance(problem, duckdb.CatalogException):  # of a file that DuckDB reads otherwise, such as Parquet
                said = "it is no DuckDB database"
            raise UserError(f"source.duckdb.database: {database} cannot be opened ({said})") from None
        yield connection


def _without_values(said: str) -> str:
    """What stands between quotes as its length and hash."""

    def shown(quoted: re.Match[str]) -> str:
        digest = hashlib.sha256(quoted[1].encode("utf-8", "replace")).hexdigest()[:12]
        return f"'...' ({len(quoted[1])} characters, sha256 {digest})"

    return re.sub(r"['\"](.*)['\"]", shown, said, flags=re.DOTALL)
