"""CSV and JSONL sources, read line by line: a broken text costs its own row and no other.

Python reads them, not DuckDB: DuckDB ends the whole query at a byte that is not UTF-8, at a lone surrogate and at a
line longer than its buffer, each of which must become one error row here.
"""

import csv
import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import UserError
from tasks.commit import open_private

# Marks a snapshot's column whose values are JSON texts, so that lists and objects come back as they were.
JSON_FIELD = {b"trunkline": b"json"}

_BATCH_ROWS = 4096
_BATCH_CHARACTERS = 8_000_000
_COLUMN_SAMPLE_LINES = 10_000
_DELIMITERS = ",;\t|"

# A column that is not there is NULL. CSV gives texts; JSONL gives JSON texts.
Row = dict[str, str]


def read_columns(files: Sequence[Path], kind: str) -> tuple[str, ...]:
    """CSV: the header, the same in every file. JSONL: the keys of the first lines."""
    return _csv_columns(files) if kind == "csv" else _jsonl_columns(files[0])


def write_snapshot(files: Sequence[Path], kind: str, columns: Sequence[str], target: Path) -> None:
    """Values are bytes, UTF-8 where the source's were."""
    read, metadata = (_csv_rows, None) if kind == "csv" else (_jsonl_rows, JSON_FIELD)
    schema = pa.schema([pa.field(column, pa.large_binary(), metadata=metadata) for column in columns])
    with open_private(target) as file, pq.ParquetWriter(file, schema) as writer:
        for rows in _batches(row for path in files for row in read(path)):
            arrays = [pa.array([_to_bytes(row.get(column)) for row in rows], pa.large_binary()) for column in columns]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
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


def _open(path: Path) -> IO[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")


def _to_bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogateescape")


# -- CSV


def _csv_columns(files: Sequence[Path]) -> tuple[str, ...]:
    headers = [_csv_header(path) for path in files]
    for path, header in zip(files, headers, strict=True):
        if header != headers[0]:
            raise UserError(f"source.csv: the header of {path} differs from that of {files[0].name}")
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            raise UserError(f"source.csv: {path} has column {twice[0]!r} twice")
    return tuple(headers[0])


def _csv_header(path: Path) -> list[str]:
    with _open(path) as file:
        header = next(_csv_reader(path, file), None)
    if not header:
        raise UserError(f"source.csv: {path} is empty; its first line must name the columns")
    return header


def _csv_rows(path: Path) -> Iterator[Row]:
    """An empty field is NULL."""
    with _open(path) as file:
        reader = _csv_reader(path, file)
        header = next(reader)
        for number, fields in enumerate(reader, start=1):
            if not fields:
                continue
            if len(fields) != len(header):
                raise UserError(f"source.csv: {path} row {number} has {len(fields)} fields, its header {len(header)}")
            yield {name: field for name, field in zip(header, fields, strict=True) if field}


def _csv_reader(path: Path, file: IO[str]) -> Iterator[list[str]]:
    """Fields of any length, delimited by whatever the first line has most of."""
    csv.field_size_limit(sys.maxsize)
    first = file.readline()
    delimiter = max(_DELIMITERS, key=first.count)
    rows = csv.reader(_chain(first, file), delimiter=delimiter, strict=True)
    try:
        yield from rows
    except csv.Error as problem:
        raise UserError(f"source.csv: {path} line {rows.line_num}: {problem}") from None


def _chain(first: str, rest: IO[str]) -> Iterator[str]:
    if first:
        yield first
    yield from rest


# -- JSONL


def _jsonl_columns(path: Path) -> tuple[str, ...]:
    columns: dict[str, None] = {}
    for number, row in enumerate(_jsonl_rows(path)):
        if number == _COLUMN_SAMPLE_LINES:
            break
        columns |= dict.fromkeys(row)
    return tuple(columns)


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield {key: json.dumps(value) for key, value in _parse(path, number, line).items() if value is not None}


def _parse(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"source.jsonl: {path} line {number} is not a JSON object")
    return value
