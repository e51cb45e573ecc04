"""CSV and JSONL sources, read line by line: a broken text costs its own row and no other.

Python reads them, not DuckDB: DuckDB ends the whole query at a byte that is not UTF-8, at a lone surrogate and at a
line longer than its buffer, each of which must become one error row here.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from tasks.job.job_source import Source
from tasks.source import csv_source, jsonl_source
from tasks.source.partitions import partition_columns, partition_of
from tasks.source.text_file import to_bytes

# Marks a column whose values are JSON texts, so that lists and objects come back as they were.
JSON_FIELD = {b"trunkline": b"json"}

_BATCH_ROWS = 4096
_BATCH_CHARACTERS = 8_000_000

# A column that is not there is NULL. CSV gives texts; JSONL gives JSON texts.
Row = dict[str, str]


def read_schema(files: Sequence[Path], source: Source, wanted: Collection[str]) -> pa.Schema:
    """The columns, partitions included, with the types that `read_batches` gives them."""
    own = partition_columns(files)
    if source.kind == "csv":
        columns = csv_source.read_columns(files, source)
    else:
        columns = jsonl_source.read_columns(files, source, set(wanted) - set(own))
    return _schema(source, dict.fromkeys([*columns, *own]))


def read_batches(files: Sequence[Path], source: Source, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Values are bytes, UTF-8 where the source's were."""
    schema = _schema(source, columns)
    for rows in _bounded(row for path in files for row in _read_rows(path, source, columns)):
        arrays = [pa.array([to_bytes(row.get(column)) for row in rows], pa.large_binary()) for column in columns]
        yield pa.record_batch(arrays, schema=schema)


def _schema(source: Source, columns: Collection[str]) -> pa.Schema:
    metadata = JSON_FIELD if source.kind == "jsonl" else None
    return pa.schema([pa.field(column, pa.large_binary(), metadata=metadata) for column in columns])


def _read_rows(path: Path, source: Source, columns: Sequence[str]) -> Iterator[Row]:
    partition = {name: value for name, value in partition_of(path).items() if value is not None}
    if source.kind == "csv":
        rows = csv_source.read_rows(path, source)
    else:
        rows = jsonl_source.read_rows(path, source, columns)
        partition = {name: json.dumps(value) for name, value in partition.items()}
    for row in rows:
        yield partition | row if partition else row


def _bounded(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Bounded in rows and in characters."""
    batch: list[Row] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(map(len, row.values()))
        if len(batch) == _BATCH_ROWS or characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
