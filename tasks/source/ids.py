"""Rows' ids: each row has one, and no two rows the same."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import pyarrow as pa

from engine.errors import UserError
from tasks.job.job_source import ROW_COLUMN
from tasks.source.source_rows import SourceBatch
from tasks.storage.duck import working_connection
from tasks.storage.parquet_sink import parquet_sink
from tasks.storage.statements import statement

# Rows whose ids are counted here: DuckDB takes longer to start.
FEW_ROWS = 4096

_SCHEMA = pa.schema([(ROW_COLUMN, pa.int64()), ("custom_id", pa.string())])


def check_ids(batches: Iterable[SourceBatch], column: str, folder: Path) -> None:
    """Ids of more than `FEW_ROWS` are grouped out of core, in `folder`.

    Raises UserError for one that is NULL, or twice there.
    """
    others = iter(batches)
    held: list[SourceBatch] = []
    for batch in others:
        held.append(batch)
        if sum(one.num_rows for one in held) > FEW_ROWS:
            repeated = _of_many(chain(held, others), column, folder)
            break
    else:
        repeated = _of_few(held, column)
    for custom_id, num_rows in repeated:
        raise UserError(f"source.id: column {column!r} is not unique: {num_rows} rows have {custom_id!r:.80}")


def _of_few(batches: Iterable[SourceBatch], column: str) -> Sequence[tuple[str, int]]:
    """Ids of several rows, with their number, in the source's order."""
    counted = Counter(chain.from_iterable(batch.ids(column) for batch in batches))
    return [(custom_id, num_rows) for custom_id, num_rows in counted.items() if num_rows > 1]


def _of_many(batches: Iterable[SourceBatch], column: str, folder: Path) -> Sequence[tuple[str, int]]:
    """The first of them alone."""
    path = folder / "ids.parquet"
    with parquet_sink(path, _SCHEMA) as sink:
        for batch in batches:
            rows = pa.array(range(batch.first_row, batch.first_row + batch.num_rows), pa.int64())
            sink.write(pa.record_batch([rows, pa.array(batch.ids(column), pa.string())], schema=_SCHEMA))
    with working_connection(folder) as connection:
        found = connection.execute(statement("steps/duplicate_ids"), {"ids": str(path)}).fetchall()
    path.unlink()
    return found
