"""Rows of the source that a run before made requests of, and that have an answer: nothing is made of them again.

A plan keeps a digest of each of its rows beside them. Rows are found by it wherever they stand now, so rows may be
added, changed, removed and put in another order; what a row is kept with is always read anew.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from engine.stages import checkpoint
from tasks.job.job_source import ROW_COLUMN
from tasks.request.row_digests import RowDigests
from tasks.source.source_rows import read_batches
from tasks.storage.duck import BATCH_ROWS, working_connection
from tasks.storage.manifests import part_files, read_manifests
from tasks.storage.parquet_sink import parquet_sink
from tasks.storage.parquet_stream import parquet_stream
from tasks.storage.parts import newest_results
from tasks.storage.run import Run
from tasks.storage.statements import statement
from tasks.storage.stored_plan import DIGESTS, ROWS, find_plan_of_digests, plan_folder

KNOWN = "known.parquet"

_SCHEMA = pa.schema([(ROW_COLUMN, pa.int64()), ("row_digest", pa.binary(16))])


@dataclass(frozen=True, slots=True)
class NamedRow:
    """A row's request by name and size, or why it has none."""

    request_hash: str | None
    prompt_tokens: int | None
    error_type: str | None = None
    error_message: str | None = None


class KnownRows:
    """Known rows by their place in the source, which are asked for in order."""

    def __init__(self, path: Path | None) -> None:
        self._rows = iter(()) if path is None else _read(path)
        self._next = next(self._rows, None)

    def between(self, first: int, last: int) -> dict[int, NamedRow]:
        """Those from `first` to before `last`, counted from `first`."""
        found = {}
        while self._next is not None and self._next[0] < last:
            found[self._next[0] - first] = self._next[1]
            self._next = next(self._rows, None)
        return found


def find_known_rows(run: Run, digests: RowDigests, files: Sequence[Path], folder: Path) -> KnownRows:
    """Writes `digests.parquet` into `folder`, and looks its rows up among those of the output folder's newest plan
    whose requests were made as this run would make them.
    """
    if digests.key is None:
        return KnownRows(None)
    _write_digests(run, digests, files, folder / DIGESTS)
    before = None if run.full else find_plan_of_digests(run.folder, digests.key)
    if before is None:
        return KnownRows(None)
    parts = [str(run.folder.root / name) for name in part_files(read_manifests(run.folder))]
    values = {
        "digests": str(folder / DIGESTS),
        "digests_before": str(plan_folder(run.folder, before) / DIGESTS),
        "rows_before": str(plan_folder(run.folder, before) / ROWS),
        "retry_failed": run.retry_failed,
    }
    query = statement("steps/known_rows", newest=newest_results(parts))
    with working_connection(folder, run.folder.root) as connection:
        reader = connection.sql(query, params=values).to_arrow_reader(BATCH_ROWS)
        with parquet_sink(folder / KNOWN, reader.schema) as sink:
            for batch in reader:
                checkpoint()
                sink.write(batch)
    return KnownRows(folder / KNOWN)


def _write_digests(run: Run, digests: RowDigests, files: Sequence[Path], path: Path) -> None:
    source = run.job.source
    names = sorted({*digests.columns, *(() if source.id is None else (source.id,))})
    with parquet_sink(path, _SCHEMA) as sink:
        for batch in read_batches(files, names):
            checkpoint()
            places = pa.array(range(batch.first_row, batch.first_row + batch.num_rows), pa.int64())
            values = pa.array(digests.of(batch, batch.custom_ids(source.id)), pa.binary(16))
            sink.write(pa.record_batch([places, values], schema=_SCHEMA))


def _read(path: Path) -> Iterator[tuple[int, NamedRow]]:
    with parquet_stream(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            for row, *named in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield row, NamedRow(*named)
