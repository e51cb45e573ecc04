"""Second step: equal requests become one, and those that have an answer already are left out."""

from dataclasses import dataclass
from pathlib import Path

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

PENDING = "pending.parquet"


@dataclass(frozen=True, slots=True)
class Deduplicated:
    """`folder` holds `rows.parquet` and `pending.parquet`. Requests are `unique` = `committed` + `pending`.

    With `reused_plan` the counts are that plan's.
    """

    rows: int
    rejected: int
    unique: int
    committed: int
    pending: int
    folder: Path
    source_digest: str
    reused_plan: str | None = None


def deduplicate_requests(run: Run, extracted: Extracted) -> Deduplicated:
    if extracted.reused_plan is not None:
        return _reused(run, extracted, extracted.reused_plan)
    failpoint("deduplicate.start")
    return find_pending(run, extracted, run.folder)


def find_pending(run: Run, extracted: Extracted, committed_in: OutputFolder) -> Deduplicated:
    """Writes the requests that have no answer among `committed_in`'s parts."""
    folder = extracted.folder
    rows, requests = str(folder / ROWS), str(folder / NEW_REQUESTS)
    parts = [str(committed_in.root / name) for name in part_files(read_manifests(committed_in))]
    with working_connection(folder) as connection:
        counts = connection.execute(statement("steps/count_requests"), {"rows": rows}).fetchall()
        [(num_rows, rejected, unique)] = counts
        query = statement("steps/pending_requests", newest=newest_results(parts))
        values = {"rows": rows, "requests": requests, "retry_failed": run.retry_failed}
        reader = connection.sql(query, params=values).to_arrow_reader(BATCH_ROWS)
        pending = 0
        with parquet_sink(folder / PENDING, reader.schema) as sink:
            for batch in reader:
                checkpoint()
                sink.write(batch)
                pending += batch.num_rows
    (folder / NEW_REQUESTS).unlink()
    failpoint("deduplicate.done")
    assert (extracted.rows, extracted.rejected) == (num_rows, rejected), (extracted, num_rows, rejected)
    return Deduplicated(num_rows, rejected, unique, unique - pending, pending, folder, extracted.source_digest)


def _reused(run: Run, extracted: Extracted, plan_id: str) -> Deduplicated:
    planned = load_plan(run.folder, plan_id)
    counts = (planned.rows, planned.rejected, planned.unique, planned.committed, planned.pending)
    return Deduplicated(*counts, extracted.folder, extracted.source_digest, plan_id)


deduplicate = as_task(deduplicate_requests, "deduplicate")
