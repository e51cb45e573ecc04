"""Rows' ids: each row has one, and no two rows the same."""

from collections.abc import Iterable
from pathlib import Path

import duckdb
import pyarrow as pa

from engine.errors import UserError
from tasks.job.job_source import ROW_COLUMN
from tasks.source.source_rows import SourceBatch
from tasks.storage.parquet_sink import parquet_sink
from tasks.storage.statements import statement

_SCHEMA = pa.schema([(ROW_COLUMN, pa.int64()), ("custom_id", pa.string())])


def check_ids(batches: Iterable[SourceBatch], column: str, folder: Path, connection: duckdb.DuckDBPyConnection) -> None:
    """Groups the ids out of core, on a `connection` that may read `folder`.

    Raises UserError for one that is NULL, or twice there.
    """
    path = folder / "ids.parquet"
    with parquet_sink(path, _SCHEMA) as sink:
        for batch in batches:
            rows = pa.array(range(batch.first_row, batch.first_row + batch.num_rows), pa.int64())
            sink.write(pa.record_batch([rows, pa.array(batch.ids(column), pa.string())], schema=_SCHEMA))
    found = connection.execute(statement("steps/duplicate_ids"), {"ids": str(path)}).fetchall()
    path.unlink()
    for custom_id, num_rows in found:
        raise UserError(f"source.id: column {column!r} is not unique: {num_rows} rows have {custom_id!r:.80}")
