"""What a run would do and cost, before it does anything."""

import re
from typing import Any

import pyarrow as pa
import pytest

from engine.figures import figure
from engine.machine.start_time import note_starting
from tasks.dry_run import plan_job
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import run_steps


def rows(*texts: str | None) -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "text": text, "topic": i} for i, text in enumerate(texts)]


def test_plan_job_writes_nothing_and_knows_what_is_committed(job_of: JobMaker) -> None:
    job = job_of(rows("abcd", "abcd", "abce", None))
    report = plan_job(job)
    assert (report.rows, report.rejected, report.unique, report.committed, report.pending) == (4, 1, 2, 0, 2)
    assert not job.output_folder.exists()
    assert "unique requests" in str(report)
    run_steps(job)
    before = sorted(job.output_folder.rglob("*"))
    assert plan_job(job).committed == 2
    assert sorted(job.output_folder.rglob("*")) == before


def test_a_run_that_scores_again_is_planned_as_one(job_of: JobMaker) -> None:
    job = job_of([*rows("abcd", "abce"), {"id": "bad", "text": "unlucky", "topic": 9}])
    run_steps(job)
    assert [plan_job(job).pending, plan_job(job, retry_failed=True).pending, plan_job(job, full=True).pending] == [
        0,
        1,
        3,
    ]


def test_plan_job_counts_starting_and_loading(job_of: JobMaker) -> None:
    job = job_of(rows("abcd", "abce"))
    note_starting(5.0)
    report = plan_job(job)
    assert report.starting_seconds == 5.0
    assert report.loading_seconds > 1
    assert report.expected_seconds == 5.0 + report.loading_seconds + report.plan.expected_seconds
    last = str(report).splitlines()[-1]
    before = figure(5.0 + report.loading_seconds)
    assert last == f"  expected time   {figure(report.expected_seconds):>12} s   {before} s of it starting and loading"
    assert report.plan.expected_seconds > 0
    assert re.findall(r"(?<![\d.,])0\.0+ s", str(report)) == []
    run_steps(job)
    assert plan_job(job).expected_seconds == 5.0


def test_answers_become_as_long_as_earlier_ones_of_the_job(job_of: JobMaker, engine: FakeWorkers) -> None:
    """A nightly job's; before the first night as long as they may."""
    asked = {"task": {"type": "generate"}, "sampling": {"max_tokens": 16}}
    first = plan_job(job_of(rows("abcd", "abce", "abdd"), **asked))
    assert (first.most_answer_tokens, first.answer_tokens) == (16, None)
    assert str(first).endswith(" s of it starting and loading; answers as long as they may be")
    engine.finish_reason = "stop"
    run_steps(job_of(rows("abcd", "abce", "abdd"), **asked))
    done = plan_job(job_of(rows("abcd", "abce", "abdd"), **asked))
    assert (done.pending, done.answer_tokens) == (0, None)
    assert str(done).endswith(" s of it starting and loading")
    more = plan_job(job_of(rows("abcd", "abce", "abdd", "abcf"), **asked))
    assert (more.pending, more.plan.max_decode_tokens, more.answer_tokens) == (1, 16, 4)
    computing = more.plan.expected_seconds - 0.75 * more.plan.decode_seconds
    assert more.expected_seconds == more.starting_seconds + more.loading_seconds + computing
    assert 0 < computing < more.plan.expected_seconds
    assert str(more).endswith(" s of it starting and loading; answers of 4 tokens, as earlier ones")
    another = plan_job(job_of(rows("abcd"), task={"type": "generate"}, sampling={"max_tokens": 8}))
    assert (another.pending, another.answer_tokens) == (1, None)


def test_workers_share_the_time(job_of: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    job = job_of(rows("abcd", "abce"))
    engine = job.engine.model_copy(update={"workers": 2})
    report = plan_job(job.model_copy(update={"engine": engine}))
    before = report.starting_seconds + report.loading_seconds
    assert (report.workers, report.expected_seconds) == (2, before + report.plan.expected_seconds / 2)
    assert str(report).splitlines()[-1].split()[:2] == ["workers", "2"]


def test_a_plan_counts_a_ranks_part(job_of: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    job = job_of(rows("abcd", "abce"))
    alone, dealt = (
        plan_job(job.model_copy(update={"engine": job.engine.model_copy(update={"tensor_parallel": ranks})}))
        for ranks in (1, 2)
    )
    assert dealt.ranks == 2
    assert alone.plan.peak_kv_bytes == 2 * dealt.plan.peak_kv_bytes > 0
    assert dealt.memory.activations < alone.memory.activations
    assert str(dealt).splitlines()[-1].split()[:2] == ["ranks", "2"]


def test_workers_of_a_cluster_need_no_cores_here(job_of: JobMaker) -> None:
    job = job_of(rows("abcd", "abce"), runner="dask", dask_scheduler="tcp://nobody:8786", engine={"workers": 256})
    assert plan_job(job).workers == 256


def test_plan_job_of_an_empty_table(job_of: JobMaker) -> None:
    report = plan_job(job_of(pa.table({"text": pa.array([], pa.string())})))
    assert (report.rows, report.pending, report.loading_seconds) == (0, 0, 0.0)
    assert str(report).splitlines()[0] == "rows                           0   the source has no rows"
