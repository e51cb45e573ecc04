"""Second step: equal requests become one, and those that have an answer already are left out."""

from dataclasses import dataclass
from pathlib import Path

import duckdb

from engine.failpoint import failpoint
from engine.stages import checkpoint
from tasks.extract import NEW_REQUESTS, Extracted
from tasks.step import as_task
from tasks.storage.duck import BATCH_ROWS, working_connection
from tasks.storage.manifests import part_files, read_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.parquet_sink import parquet_sink
from tasks.storage.parts import newest_results
from tasks.storage.run import Run
from tasks.storage.statements import statement
from tasks.storage.stored_plan import ROWS, load_plan
from tasks.store.scoring_store import ScoringStore
from tasks.store.take import take_results

PENDING = "pending.parquet"


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
    with working_connection(folder, committed_in.root, run.folder.root) as connection:
        counted = connection.execute(statement("steps/count_requests"), {"rows": str(folder / ROWS)}).fetchall()
        [(num_rows, rejected, unique)] = counted
        taken = 0
        if run.store is not None and not run.full:
            wanted = folder / "wanted.parquet"
            if _write(connection, statement("steps/unanswered", newest=newest_results(parts)), run, folder, wanted):
                taken = take_results(run, wanted)
            wanted.unlink()
        parts = list(dict.fromkeys([*parts, *(_parts_of(run.folder) if taken else [])]))
        unanswered = statement("steps/unanswered", newest=newest_results(parts))
        query = statement("steps/pending_requests", unanswered=unanswered)
        pending = _write(connection, query, run, folder, folder / PENDING)
    (folder / NEW_REQUESTS).unlink()
    failpoint("deduplicate.done")
    assert (extracted.rows, extracted.rejected) == (num_rows, rejected), (extracted, num_rows, rejected)
    committed = unique - taken - pending
    counts = (num_rows, rejected, unique, committed, taken, pending)
    return Deduplicated(*counts, folder, extracted.source_digest, extracted.row_digests)


def _parts_of(folder: OutputFolder) -> list[str]:
    return [str(folder.root / name) for name in part_files(read_manifests(folder))]


def _write(connection: duckdb.DuckDBPyConnection, query: str, run: Run, folder: Path, to: Path) -> int:
    """Writes what the query gives, which is about the rows and new requests in `folder`. Returns how many rows."""
    values = {"rows": str(folder / ROWS), "retry_failed": run.retry_failed, "full": run.full}
    if "$requests" in query:
        values["requests"] = str(folder / NEW_REQUESTS)
    reader = connection.sql(query, params=values).to_arrow_reader(BATCH_ROWS)
    written = 0
    with parquet_sink(to, reader.schema) as sink:
        for batch in reader:
            checkpoint()
            sink.write(batch)
            written += batch.num_rows
    return written


def _reused(run: Run, extracted: Extracted, plan_id: str) -> Deduplicated:
    planned = load_plan(run.folder, plan_id)
    counts = (planned.rows, planned.rejected, planned.unique, planned.committed, planned.from_store, planned.pending)
    return Deduplicated(*counts, extracted.folder, extracted.source_digest, reused_plan=plan_id)


deduplicate = as_task(deduplicate_requests, "deduplicate")
