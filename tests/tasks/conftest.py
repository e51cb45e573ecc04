from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.job.job import ScoringJob
from tests.tasks.fakes import FakeWorkers, job_content, write_model
from tests.tasks.steps import make_job, use_fakes

JobMaker = Callable[..., ScoringJob]


@pytest.fixture
def all_files() -> None:
    """Runs on the `engine` below end with `results.duckdb` and the report; else they are left out, being made of what
    is committed, half of such a run's time, and looked at by few: `table` and `query` make views of their own.
    """


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeWorkers:
    """The engine that `infer_shard` gets; the tokenizer is a byte's."""
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))
    needless = {"tasks.plan.write_views", "tasks.publish.write_views", "tasks.publish.publish_report"}
    for name in needless if "all_files" not in request.fixturenames else {"tasks.plan.write_views"}:
        monkeypatch.setattr(name, lambda *_: None)
    engine = FakeWorkers()
    use_fakes(monkeypatch, engine)
    return engine


@pytest.fixture
def job_of(tmp_path: Path, engine: FakeWorkers) -> JobMaker:
    """A job over rows that are written to Parquet, or over any other source given as `source`."""
    write_model(tmp_path / "model")

    def make(rows: list[dict[str, Any]] | pa.Table | None = None, **changes: Any) -> ScoringJob:
        source = changes.pop("source", {})
        if rows is not None:
            content = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
            pq.write_table(content, tmp_path / "rows.parquet")
            source = {"parquet": str(tmp_path / "rows.parquet"), **source}
        return make_job(job_content(tmp_path, source, **changes))

    return make
