"""The source's files, their columns, and a digest of their content."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from glob import glob
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import UserError
from tasks import database_source, text_source
from tasks.job import Source


@dataclass(frozen=True, slots=True)
class FileState:
    """How a file looked when its digest was taken."""

    path: Path
    size: int
    mtime_ns: int
    inode: int


def find_files(source: Source) -> tuple[Path, ...]:
    """The files of a Parquet, CSV or JSONL source, in the order of their names."""
    pattern = getattr(source, source.kind)
    files = tuple(sorted(path for name in glob(pattern, recursive=True) if (path := Path(name)).is_file()))
    if not files:
        raise UserError(f"source.{source.kind}: no file matches {pattern} (looked from {Path.cwd()})")
    return files


def read_columns(source: Source) -> tuple[str, ...]:
    """The source's column names. Reads headers and the first lines, no more. Raises UserError."""
    if source.duckdb is not None:
        return database_source.read_columns(source.duckdb)
    if source.kind == "parquet":
        return _parquet_columns(find_files(source))
    return text_source.read_columns(find_files(source), source.kind)


def check_columns(columns: Sequence[str], wanted: dict[str, str]) -> None:
    """`wanted` maps a job key to the column that it names. Raises UserError for one that is not there."""
    for key, column in wanted.items():
        if column not in columns:
            same = [name for name in columns if name.lower() == column.lower()]
            close = same or get_close_matches(column, columns, n=1)
            cure = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(columns)[:200]}"
            raise UserError(f"{key}: the source has no column {column!r}; {cure}")


def file_states(files: Sequence[Path]) -> tuple[FileState, ...]:
    stats = [(path, path.stat()) for path in files]
    return tuple(FileState(path, stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in stats)


def digest_files(files: Sequence[Path]) -> str:
    """Of the contents in order; names do not count."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def check_unchanged(states: Sequence[FileState]) -> None:
    """Raises UserError where a file is no longer the one whose digest was taken."""
    for state in states:
        if not state.path.is_file() or file_states([state.path]) != (state,):
            raise UserError(f"source: {state.path} changed while it was read; run again when nothing writes to it")


def write_snapshot(source: Source, columns: Sequence[str], target: Path) -> None:
    """Copies the named columns of a source that is not Parquet into one Parquet file."""
    if source.duckdb is not None:
        database_source.write_snapshot(source.duckdb, columns, target)
    else:
        text_source.write_snapshot(find_files(source), source.kind, columns, target)


def _parquet_columns(files: Sequence[Path]) -> tuple[str, ...]:
    first = _parquet_schema(files[0])
    for path in files[1:]:
        other = _parquet_schema(path)
        if not first.equals(other):
            name = next((n for n in first.names if n not in other.names or first.field(n) != other.field(n)), None)
            what = f"column {name!r} differs" if name is not None else "its columns differ"
            raise UserError(f"source.parquet: {path}: {what} from {files[0].name}; all files need the same columns")
    twice = [name for name in first.names if first.names.count(name) > 1]
    if twice:
        raise UserError(f"source.parquet: {files[0]} has column {twice[0]!r} twice")
    return tuple(first.names)


def _parquet_schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path).remove_metadata()
    except (pa.ArrowException, OSError) as problem:
        raise UserError(f"source.parquet: {path} cannot be read as Parquet ({str(problem)[:100]})") from None
