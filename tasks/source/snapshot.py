"""The source as it was when the run began: Parquet files in place, every other source copied to Parquet."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from engine.failpoint import failpoint
from tasks.job.job_source import Source
from tasks.source.source import FileState, check_unchanged, digest_files, file_states, write_snapshot
from tasks.source.source_paths import find_files


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`digest` is of the source's content. `originals` must stay as they are until all rows are read."""

    files: tuple[Path, ...]
    digest: str
    originals: tuple[FileState, ...]

    def check_unchanged(self) -> None:
        check_unchanged(self.originals)


def take_snapshot(source: Source, schema: pa.Schema, target: Path, is_known: Callable[[str], bool]) -> Snapshot:
    """Copies nothing where `is_known` says that this content needs no reading; `files` are then not to be read."""
    if source.kind == "duckdb":
        write_snapshot(source, schema, target)
        failpoint("snapshot.copied")
        return Snapshot((target,), digest_files([target]), ())
    files = find_files(source)
    states = file_states(files)
    digest = digest_files(files)
    if source.kind == "parquet" or is_known(digest):
        return Snapshot(files, digest, states)
    write_snapshot(source, schema, target)
    failpoint("snapshot.copied")
    return Snapshot((target,), digest, states)
