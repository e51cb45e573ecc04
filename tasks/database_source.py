"""A source that is a query on a DuckDB database: opened read-only, copied once, closed again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import UserError
from tasks.commit import open_private
from tasks.duck import BATCH_ROWS, database_connection
from tasks.job import DuckDBSource
from tasks.statements import first_line, identifier, single_select, statement


def read_columns(source: DuckDBSource) -> tuple[str, ...]:
    with _query(source) as relation:
        return tuple(relation.columns)


def write_snapshot(source: DuckDBSource, columns: Sequence[str], target: Path) -> None:
    with _query(source) as relation, open_private(target) as file:
        reader = relation.project(", ".join(map(identifier, columns))).to_arrow_reader(BATCH_ROWS)
        with pq.ParquetWriter(file, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch)


@contextmanager
def _query(source: DuckDBSource) -> Iterator[duckdb.DuckDBPyRelation]:
    """The query's relation. Every failure of the database or the query is the user's to mend."""
    database = Path(source.database).expanduser().absolute()
    if not database.is_file():
        raise UserError(f"source.duckdb.database: no file {source.database}")
    query = single_select(source.query, "source.duckdb.query")
    try:
        with database_connection(database) as connection:
            # A view takes the text as it is: one statement, with whatever semicolon and comment end it.
            connection.execute(f"{statement('source_view')} {query}")
            yield connection.sql(statement("source_rows"))
    except duckdb.IOException as problem:
        said = "another process has it open for writing" if "lock" in str(problem).lower() else first_line(problem)
        raise UserError(f"source.duckdb.database: {source.database} cannot be opened ({said})") from None
    except (duckdb.Error, pa.ArrowNotImplementedError) as problem:
        raise UserError(f"source.duckdb.query: {first_line(problem)}") from None
