"""The source's files, their columns, and a digest of their content."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import UserError
from tasks.job.job_source import Source
from tasks.source import database_source, parquet_source, text_source
from tasks.source.partitions import partition_of
from tasks.source.source_paths import find_database, find_files
from tasks.storage.commit import open_private


@dataclass(frozen=True, slots=True)
class FileState:
    """How a file looked when its digest was taken."""

    path: Path
    size: int
    mtime_ns: int
    inode: int


def read_schema(source: Source, wanted: Collection[str]) -> pa.Schema:
    """The source's columns with their types. Reads headers, and lines until all that are `wanted` were met."""
    if source.duckdb is not None:
        return database_source.read_schema(find_database(source), source.duckdb.query)
    files = find_files(source)
    if source.kind == "parquet":
        return parquet_source.read_schema(files, wanted)
    return text_source.read_schema(files, source, wanted)


def read_data(source: Source, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The source's rows as they are now, in bounded batches of the named columns."""
    if source.duckdb is not None:
        return database_source.read_batches(find_database(source), source.duckdb.query, columns)
    files = find_files(source)
    if source.kind == "parquet":
        return parquet_source.read_batches(files, columns)
    return text_source.read_batches(files, source, columns)


def check_columns(columns: Sequence[str], wanted: dict[str, str]) -> None:
    """`wanted` maps a job key to the column that it names. Raises UserError for one that is not there."""
    for key, column in wanted.items():
        if column not in columns:
            same = [name for name in columns if name.lower() == column.lower()]
            close = same or get_close_matches(column, columns, n=1)
            there = f"there are: {' '.join(', '.join(columns).split())[:200]}" if columns else "it has none"
            cure = f"did you mean {close[0]!r}?" if close else there
            raise UserError(f"{key}: the source has no column {column!r}; {cure}")


def file_states(files: Sequence[Path]) -> tuple[FileState, ...]:
    stats = [(path, path.stat()) for path in files]
    return tuple(FileState(path, stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in stats)


def digest_files(files: Sequence[Path]) -> str:
    """Of the contents in order; names do not count, but for the columns that partitions make of them."""
    digest = hashlib.sha256()
    for path in files:
        if partition := partition_of(path):
            digest.update(repr(partition).encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def check_unchanged(states: Sequence[FileState]) -> None:
    """Raises UserError where a file is no longer the one whose digest was taken."""
    for state in states:
        if not state.path.is_file() or file_states([state.path]) != (state,):
            raise UserError(f"source: {state.path} changed while it was read; run again when nothing writes to it")


def write_snapshot(source: Source, schema: pa.Schema, target: Path) -> None:
    """Copies the schema's columns of a source that is not Parquet into one Parquet file."""
    with open_private(target) as file, pq.ParquetWriter(file, schema) as writer:
        for batch in read_data(source, schema.names):
            writer.write_batch(batch)
