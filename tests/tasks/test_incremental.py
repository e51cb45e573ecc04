"""A table of which 1 % has changed costs what has changed, and not the table."""

import time
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tests.tasks.steps
from tasks.job.job import ScoringJob
from tests.tasks.fakes import FakeWorkers, job_content
from tests.tasks.steps import make_job, run_steps

ROWS, CHANGED = 100_000, 1_000
# What an engine takes for a row, beside which all else is counted: a thousand rows a second.
SECONDS_A_ROW = 1e-3
TEXT = "Say whether the text is about a person. Text {row} of group {group} is of a usual length{new}. Answer:"


def write(path: Path, *, changed: bool) -> None:
    step = ROWS // CHANGED
    texts = [
        TEXT.format(row=row, group=row // 50, new=" and new" if changed and row % step == 0 else "")
        for row in range(ROWS)
    ]
    pq.write_table(pa.table({"id": [f"r{row}" for row in range(ROWS)], "text": texts}), path)


def seconds(job: ScoringJob) -> tuple[int, float]:
    """The rows that were scored, and the processor's seconds for all but the engine, with what an engine takes."""
    started = time.process_time()
    planned, published = run_steps(job)
    assert published.results == ROWS
    return planned.pending, time.process_time() - started + planned.pending * SECONDS_A_ROW


@pytest.mark.nightly
def test_a_percent_that_changed_takes_three_percent_of_the_time(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are rendered and encoded as the embedded model's are; the engine is a fake, and its time is as stated."""
    monkeypatch.setattr(tests.tasks.steps, "workers_of", lambda _: nullcontext(FakeWorkers()))
    source = {"parquet": str(tmp_path / "rows.parquet"), "id": "id"}
    job = make_job(job_content(tmp_path, source, model={"path": str(tiny_model)}))
    write(tmp_path / "rows.parquet", changed=False)
    whole, full = seconds(job)
    write(tmp_path / "rows.parquet", changed=True)
    part, again = seconds(job)
    assert (whole, part) == (ROWS, CHANGED)
    assert again <= 0.03 * full, (again, full)
