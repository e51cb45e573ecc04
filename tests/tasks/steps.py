"""The steps one after the other, as the flow calls them, on the fakes or on a model."""

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tasks.check
import tasks.extract
import tasks.preview
from tasks.deduplicate import deduplicate_requests
from tasks.extract import Extracted, extract_rows
from tasks.in_process import InProcess
from tasks.infer import infer_shard
from tasks.job.job import ScoringJob
from tasks.job.job_file import parse_job
from tasks.plan import StoredPlan, make_run_plan
from tasks.publish import Published, publish_results
from tasks.query import query
from tasks.report.published import open_published
from tasks.report.views import open_views
from tasks.storage.manifests import read_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import Run, open_run
from tasks.workers import Workers
from tests.tasks.fakes import ByteTokenizer, FakeWorkers, job_content

# All that a row's end says, but for which run said it.
TABLE = """
SELECT * EXCLUDE (run_id) FROM (SELECT * FROM results UNION ALL BY NAME SELECT * FROM errors) ORDER BY custom_id
"""


def workers_of(run: Run) -> AbstractContextManager[Workers]:
    """Who computes for the steps below: an engine of the run's own, until `use_fakes` says otherwise."""
    return InProcess(run.model, run.config)


def use_fakes(monkeypatch: pytest.MonkeyPatch, engine: FakeWorkers, tokenizer: ByteTokenizer | None = None) -> None:
    monkeypatch.setattr("tests.tasks.steps.workers_of", lambda _: nullcontext(engine))
    for module in (tasks.extract, tasks.check, tasks.preview):
        monkeypatch.setattr(module, "load_tokenizer", lambda *_: tokenizer or ByteTokenizer())


def make_job(content: dict[str, Any]) -> ScoringJob:
    return parse_job(content, "job.yaml")


def model_job(folder: Path, model: Path, rows: list[dict[str, Any]], **changes: Any) -> ScoringJob:
    """A job on a model's own weights over rows, whose ids are `id`; `changes` replace whole top-level keys."""
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    source = {"parquet": str(folder / "rows.parquet"), "id": "id"}
    return make_job(job_content(folder, source, model={"path": str(model)}) | changes)


def run_steps(
    job: ScoringJob, *, retry_failed: bool = False, full: bool = False, wait: float = 0.0
) -> tuple[StoredPlan, Published]:
    with open_run(job, retry_failed, full=full, wait=wait) as run, workers_of(run) as workers:
        planned = make_run_plan(run, deduplicate_requests(run, extract_rows(run)), workers)
        for shard in planned.shards:
            infer_shard(run, planned.plan_id, shard, workers)
        return planned, publish_results(run, planned.plan_id)


def plan_alone(job: ScoringJob, scored_shards: int = 0, *, retry_failed: bool = False) -> tuple[Extracted, StoredPlan]:
    """A run that is stopped once it has scored that many shards."""
    found: list[tuple[Extracted, StoredPlan]] = []
    with suppress(KeyboardInterrupt), open_run(job, retry_failed) as run, workers_of(run) as workers:
        extracted = extract_rows(run)
        found.append((extracted, make_run_plan(run, deduplicate_requests(run, extracted), workers)))
        for shard in found[0][1].shards[:scored_shards]:
            infer_shard(run, found[0][1].plan_id, shard, workers)
        raise KeyboardInterrupt
    return found[0]


def ask(folder: Path | str, sql: str) -> list[dict[str, Any]]:
    with query(folder, sql) as result:
        return list(result.table().to_pylist())


def table(job: ScoringJob) -> list[dict[str, Any]]:
    """In the views that a report is made of, which have no comments and open in half of the time of a query's."""
    published = open_published(OutputFolder(job.output_folder))
    with open_views(published.folder, published.plan_id, published.manifests) as connection:
        return list(connection.sql(TABLE).to_arrow_table().to_pylist())


def outcomes(job: ScoringJob) -> dict[str, str]:
    """What became of each row: `ok`, or the type of its error."""
    return {row["custom_id"]: row["error_type"] or row["status"] for row in table(job)}


def part_rows(job: ScoringJob, of: Collection[str] | None = None) -> list[dict[str, Any]]:
    """All that is committed, as it lies in the parts, or in those of these names."""
    folder = OutputFolder(job.output_folder)
    named = [part.name for manifest in read_manifests(folder) for part in manifest.files]
    names = [name for name in named if of is None or name in of]
    return [row for name in names for row in pq.read_table(folder.parts / name).to_pylist()]
