"""Second step: equal requests become one, and those that have an answer already are left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from engine.failpoint import failpoint
from engine.stages import checkpoint
from tasks.extract import NEW_REQUESTS, REQUEST_SCHEMA, Extracted
from tasks.job.job_source import ROW_COLUMN
from tasks.step import as_task
from tasks.storage.duck import BATCH_ROWS, working_connection
from tasks.storage.manifests import part_files, read_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.parquet_sink import parquet_sink
from tasks.storage.parquet_stream import parquet_stream
from tasks.storage.parts import newest_results
from tasks.storage.run import Run
from tasks.storage.statements import statement
from tasks.storage.stored_plan import ROWS, load_plan
from tasks.store.scoring_store import ScoringStore
from tasks.store.take import take_results

PENDING = "pending.parquet"
_OF_REQUEST = REQUEST_SCHEMA.remove(REQUEST_SCHEMA.get_field_index(ROW_COLUMN))
_OF_ROWS = pa.schema([("attempts", pa.int32()), ("num_rows", pa.int64())])
PENDING_SCHEMA = pa.unify_schemas([_OF_REQUEST, _OF_ROWS])


@dataclass(frozen=True, slots=True)
class Deduplicated:
    """`folder` holds `rows.parquet` and `pending.parquet`. Requests: `unique` = `committed` + `from_store` + `pending`.

    With `reused_plan` the counts are that plan's.
    """

    rows: int
    rejected: int
    unique: int
    committed: int
    from_store: int
    pending: int
    folder: Path
    source_digest: str
    row_digests: str | None = None
    reused_plan: str | None = None


def deduplicate_requests(run: Run, extracted: Extracted) -> Deduplicated:
    """What the store has an answer to is committed in the run's folder, and so is not pending."""
    if extracted.reused_plan is not None:
        return _reused(run, extracted, extracted.reused_plan)
    failpoint("deduplicate.start")
    if run.store is not None:
        ScoringStore(run.store).create()
    return find_pending(run, extracted, run.folder)


def find_pending(run: Run, extracted: Extracted, committed_in: OutputFolder) -> Deduplicated:
    """Writes the requests that have no answer, neither in `committed_in` nor in the store: what the store has of them
    is committed in the run's own folder.
    """
    folder = extracted.folder
    parts = _parts_of(committed_in)
    stores = () if run.store is None else (run.store,)
    with working_connection(folder, committed_in.root, run.folder.root, *stores) as connection:
        counted = connection.execute(statement("steps/count_requests"), {"rows": str(folder / ROWS)}).fetchall()
        [(num_rows, rejected, unique)] = counted
        unanswered = _unanswered(connection, run, folder, parts)
        if run.store is None or run.full:
            taken, pending = 0, write_pending(unanswered, folder)
        else:
            wanted = folder / "wanted.parquet"
            taken = take_results(run, wanted, connection) if _write_wanted(unanswered, wanted) else 0
            if taken:
                parts = list(dict.fromkeys([*parts, *_parts_of(run.folder)]))
                pending = write_pending(_unanswered(connection, run, folder, parts), folder)
            else:
                pending = _write_all(wanted, folder)
            wanted.unlink()
    (folder / NEW_REQUESTS).unlink()
    failpoint("deduplicate.done")
    assert (extracted.rows, extracted.rejected) == (num_rows, rejected), (extracted, num_rows, rejected)
    committed = unique - taken - pending
    counts = (num_rows, rejected, unique, committed, taken, pending)
    return Deduplicated(*counts, folder, extracted.source_digest, extracted.row_digests)


def _parts_of(folder: OutputFolder) -> list[str]:
    return [str(folder.root / name) for name in part_files(read_manifests(folder))]


def _unanswered(
    connection: duckdb.DuckDBPyConnection, run: Run, folder: Path, parts: Sequence[str]
) -> pa.RecordBatchReader:
    """The rows' requests that have no answer in these parts, by the first row of each."""
    values = {"rows": str(folder / ROWS), "retry_failed": run.retry_failed, "full": run.full}
    query = statement("steps/unanswered", newest=newest_results(parts))
    return connection.sql(query, params=values).to_arrow_reader(BATCH_ROWS)


def _write_wanted(unanswered: pa.RecordBatchReader, to: Path) -> int:
    written = 0
    with parquet_sink(to, unanswered.schema) as sink:
        for batch in unanswered:
            checkpoint()
            sink.write(batch)
            written += batch.num_rows
    return written


def _write_all(wanted: Path, folder: Path) -> int:
    """As `write_pending`, where none of the `wanted` was found since they were written."""
    with parquet_stream(wanted) as file:
        batches = file.iter_batches(BATCH_ROWS)
        return write_pending(pa.RecordBatchReader.from_batches(file.schema_arrow, batches), folder)


def write_pending(unanswered: pa.RecordBatchReader, folder: Path) -> int:
    """Writes the unanswered of the new requests, each once. Both come in the source's order: neither is held."""
    written = 0
    with (
        parquet_stream(folder / NEW_REQUESTS) as requests,
        parquet_sink(folder / PENDING, PENDING_SCHEMA) as sink,
    ):
        wanted = Wanted(unanswered)
        for batch in requests.iter_batches(BATCH_ROWS):
            checkpoint()
            chosen = _join(batch, wanted.until(batch.column(ROW_COLUMN)[-1].as_py()))
            sink.write(chosen)
            written += chosen.num_rows
    return written


@dataclass(slots=True, eq=False)
class Wanted:
    """Reads requests by the first row of each."""

    reader: pa.RecordBatchReader
    left: pa.Table | None = None

    def until(self, last: int) -> pa.Table:
        """Those whose first row is not behind `last`, and that were not read yet."""
        read = [] if self.left is None else [self.left]
        while not read or not read[-1].num_rows or read[-1].column("first_row")[-1].as_py() <= last:
            batch = next(self.reader, None)
            if batch is None:
                break
            read.append(pa.Table.from_batches([batch]))
        found = pa.concat_tables(read) if read else self.reader.schema.empty_table()
        count = int(np.searchsorted(found.column("first_row").to_numpy(), last, side="right"))
        self.left = found.slice(count)
        return found.slice(0, count)


def _join(requests: pa.RecordBatch, wanted: pa.Table) -> pa.RecordBatch:
    rows, firsts = requests.column(ROW_COLUMN).to_numpy(), wanted.column("first_row").to_numpy()
    _, chosen, of = np.intersect1d(rows, firsts, assume_unique=True, return_indices=True)
    columns = [requests.column(name).take(pa.array(chosen)) for name in _OF_REQUEST.names]
    columns += [wanted.column(name).take(pa.array(of)).combine_chunks() for name in _OF_ROWS.names]
    return pa.record_batch(columns, PENDING_SCHEMA)


def _reused(run: Run, extracted: Extracted, plan_id: str) -> Deduplicated:
    planned = load_plan(run.folder, plan_id)
    counts = (planned.rows, planned.rejected, planned.unique, planned.committed, planned.from_store, planned.pending)
    return Deduplicated(*counts, extracted.folder, extracted.source_digest, reused_plan=plan_id)


deduplicate = as_task(deduplicate_requests, "deduplicate")
