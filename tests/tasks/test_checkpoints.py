"""Rows that have ended are committed before their shard is done; the shard takes their place."""

import os
import time
from collections import Counter
from concurrent.futures import Future
from typing import Any

import duckdb
import pytest

from engine.errors import EngineClosedError
from engine.plan import ShardWork
from engine.request import RequestOutput
from tasks.error_limit import ErrorLimit
from tasks.infer import Heeds, infer_shard
from tasks.job.job import ScoringJob
from tasks.plan import make_run_plan
from tasks.publish import publish_results
from tasks.run_commits import RunCommits
from tasks.shard_gate import ShardGate
from tasks.shard_results import ShardResults
from tasks.storage.manifests import read_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import open_run
from tasks.storage.run_record import read_records
from tasks.workers import OnOutput
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import ask, deduplicate_requests, extract_rows, run_steps, table

EACH_ROW = {"checkpoint_seconds": 1e-9, "shard_seconds": 1000.0, "source": {"id": "id"}}
SAVINGS = """
SELECT row_number() OVER () AS run, unique_prompt_tokens, computed_prompt_tokens, planned_tokens FROM prefix_savings
"""


def rows(count: int, first: int = 0) -> list[dict[str, str]]:
    return [{"id": f"r{i:02}", "text": f"document {i:02}"} for i in range(first, first + count)]


def stopped(job: ScoringJob, monkeypatch: pytest.MonkeyPatch, place: str, hit: int = 1) -> None:
    """A run whose process fails there."""
    with monkeypatch.context() as failing:
        failing.setattr("engine.failpoint._hits", Counter())
        failing.setenv("FAILPOINT", f"{place}:{hit}:error")
        with pytest.raises(OSError, match=place):
            run_steps(job)


def files(folder: OutputFolder, kind: str) -> list[str]:
    return sorted(path.name for path in folder.manifests.glob(f"{kind}-*"))


class Waiting(FakeWorkers):
    """Its device is another's for a while."""

    def submit(self, work: ShardWork, on_output: OnOutput | None = None) -> "Future[list[RequestOutput]]":
        time.sleep(0.4)
        return super().submit(work, on_output)


def test_waiting_for_a_device_is_no_time_of_a_shard(job_of: JobMaker) -> None:
    with open_run(job_of(rows(8), shard_seconds=1000.0)) as run:
        engine = Waiting()
        planned = make_run_plan(run, deduplicate_requests(run, extract_rows(run)), engine)
        [shard] = planned.shards
        done = infer_shard(run, planned.plan_id, shard, engine)
    assert done.seconds < 0.3


def test_a_shard_that_ends_within_the_interval_has_none(job_of: JobMaker) -> None:
    job = job_of(rows(8), shard_seconds=1000.0)
    run_steps(job)
    folder = OutputFolder(job.output_folder)
    assert files(folder, "checkpoint") == []
    assert len(files(folder, "shard")) == len([*folder.parts.iterdir()]) == 1


@pytest.mark.fault(1, 20)
def test_a_run_that_is_killed_in_a_shard_is_continued_behind_its_last_checkpoint(
    job_of: JobMaker, engine: FakeWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(rows(8), **EACH_ROW)
    stopped(job, monkeypatch, "infer.scored")
    folder = OutputFolder(job.output_folder)
    assert len(files(folder, "checkpoint")) == 8
    engine.works.clear()
    run_steps(job)
    assert engine.works == []
    assert len(read_manifests(folder)) == 1
    run_steps(job)
    assert len(files(folder, "checkpoint")) == 8, "views of before that publication name them"
    run_steps(job)
    assert files(folder, "checkpoint") == []
    assert len([*folder.parts.iterdir()]) == 1


@pytest.mark.fault(1)
def test_what_each_run_computed_of_a_shard_stays_its_own(
    job_of: JobMaker, engine: FakeWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(rows(8), **EACH_ROW)
    # The fourth checkpoint fails as on a full disk, which no later one makes up for.
    monkeypatch.setattr("tasks.shard_scorer.is_transient", lambda _: False)
    stopped(job, monkeypatch, "checkpoint.start", 4)
    assert [manifest.requests for manifest in read_manifests(OutputFolder(job.output_folder))] == [1, 1, 1]
    engine.works.clear()
    run_steps(job)
    assert len(engine.scored) == 5
    length = len("document 00")
    planned = length + 8 + 1  # digits: the first of two, shared, and the last of each
    first, second = ask(job.output_folder, SAVINGS)
    assert (first["unique_prompt_tokens"], second["unique_prompt_tokens"]) == (3 * length, 5 * length)
    assert (first["computed_prompt_tokens"], second["computed_prompt_tokens"]) == (3 * length, 5 * length)
    [shard] = ask(job.output_folder, "select * from shards")
    assert first["planned_tokens"] + second["planned_tokens"] == shard["planned_tokens"] <= planned
    assert first["planned_tokens"] == pytest.approx(shard["planned_tokens"] * 3 / 8, abs=2)
    assert (shard["requests"], shard["prompt_tokens"], shard["files"][0]["rows"]) == (8, 8 * length, 8)
    assert [run["scored"] for run in ask(job.output_folder, "select scored from runs")] == [3, 5]
    ran = ask(job.output_folder, "select run_id, count(*)::int as n from results group by run_id order by run_id")
    assert [row["n"] for row in ran] == [3, 5]


def test_a_plan_that_is_made_anew_leaves_out_what_checkpoints_have(
    job_of: JobMaker, engine: FakeWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(job_of(rows(8), **EACH_ROW), monkeypatch, "infer.scored")
    engine.works.clear()
    job = job_of(rows(10), **EACH_ROW)
    planned, published = run_steps(job)
    assert (planned.committed, planned.pending, len(engine.scored), published.results) == (8, 2, 2, 10)
    undisturbed = job_of(rows(10), **EACH_ROW, output=f"{job.output_folder}-2")
    run_steps(undisturbed)
    other = [row | {"cached_tokens": None} for row in table(undisturbed)]
    assert [row | {"cached_tokens": None} for row in table(job)] == other


def test_no_row_is_there_twice_between_a_shards_manifest_and_the_end_of_its_checkpoints(
    job_of: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(rows(8), **EACH_ROW)
    stopped(job, monkeypatch, "infer.done")
    folder = OutputFolder(job.output_folder)
    assert (len(files(folder, "checkpoint")), len(files(folder, "shard"))) == (8, 1)
    assert [manifest.requests for manifest in read_manifests(folder)] == [8]
    for _ in range(2):
        run_steps(job)
        assert len(table(job)) == len(files(folder, "checkpoint")) == 8
    stopped(job, monkeypatch, "checkpoint.removed", 3)
    assert len(table(job)) == 8
    assert len(files(folder, "checkpoint")) == 5
    run_steps(job)
    assert files(folder, "checkpoint") == []


@pytest.mark.usefixtures("all_files")
def test_views_of_before_are_readable_until_new_ones_are_published(
    job_of: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program reads `results.duckdb`, whose views name the checkpoints that were there."""
    job = job_of(rows(8), **EACH_ROW)
    stopped(job, monkeypatch, "infer.scored")
    with open_run(job) as run:
        planned = make_run_plan(run, deduplicate_requests(run, extract_rows(run)), FakeWorkers())
        publish_results(run, planned.plan_id)
        infer_shard(run, planned.plan_id, planned.shards[0], FakeWorkers())
        settings = {"file_search_path": str(run.root)}
        with duckdb.connect(str(run.folder.database), read_only=True, config=settings) as connection:
            assert connection.execute("select count(*) from results").fetchall() == [(8,)]


@pytest.mark.parametrize("count", [8, 10])
def test_of_checkpoints_with_a_row_in_common_one_counts(
    count: int, job_of: JobMaker, engine: FakeWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is committed, but fails behind that, so that the second holds its row too. 10 rows: in another plan."""
    job = job_of(rows(8), **EACH_ROW)
    with monkeypatch.context() as failing:
        failing.setattr("engine.failpoint._hits", Counter())
        failing.setenv("FAILPOINT", "checkpoint.done:1:error")
        failing.setattr(ShardResults, "commit", lambda _: os.stat("/there/is/none"))
        with pytest.raises(FileNotFoundError):
            run_steps(job)
    folder = OutputFolder(job.output_folder)
    assert len(files(folder, "checkpoint")) == 8
    assert sorted(manifest.requests for manifest in read_manifests(folder)) == [1, 1, 1, 1, 1, 1, 2]
    assert [record.scored for record in read_records(folder)] == [8]
    engine.works.clear()
    run_steps(job_of(rows(count), **EACH_ROW))
    assert len(engine.scored) == count - 8
    assert len(table(job)) == count
    assert sum(manifest.requests for manifest in read_manifests(folder)) == count


def truncate_part(folder: OutputFolder) -> None:
    os.truncate(sorted(folder.parts.iterdir())[0], 10)


def truncate_manifest(folder: OutputFolder) -> None:
    os.truncate(folder.manifests / files(folder, "checkpoint")[0], 10)


@pytest.mark.parametrize("damage", [truncate_part, truncate_manifest])
def test_a_damaged_checkpoint_is_set_aside_and_its_rows_alone_are_scored_again(
    job_of: JobMaker, engine: FakeWorkers, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    job = job_of(rows(8), **EACH_ROW)
    stopped(job, monkeypatch, "infer.scored")
    damage(OutputFolder(job.output_folder))
    engine.works.clear()
    run_steps(job)
    assert len(engine.scored) == 1
    assert [*job.output_folder.rglob("*.bad")]
    assert len(table(job)) == 8


def test_checkpoints_stand_in_for_a_shard_whose_manifest_is_damaged(
    job_of: JobMaker, engine: FakeWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(rows(8), **EACH_ROW)
    stopped(job, monkeypatch, "infer.done")
    folder = OutputFolder(job.output_folder)
    (folder.manifests / files(folder, "shard")[0]).write_text("{")
    engine.works.clear()
    run_steps(job)
    assert engine.works == []
    assert len(table(job)) == 8


def test_a_checkpoint_that_fails_in_passing_is_made_up_for(
    job_of: JobMaker, engine: FakeWorkers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = job_of(rows(8), **EACH_ROW)
    monkeypatch.setattr("engine.failpoint._hits", Counter())
    monkeypatch.setenv("FAILPOINT", "checkpoint.start:2:error")
    run_steps(job)
    assert len(table(job)) == 8
    assert len(engine.works) == 1
    assert "a checkpoint was not written, the next one will hold its rows too" in caplog.text


def test_a_run_that_has_ended_commits_nothing_more(job_of: JobMaker) -> None:
    job = job_of(rows(8), **EACH_ROW)
    with open_run(job) as run:
        planned = make_run_plan(run, deduplicate_requests(run, extract_rows(run)), FakeWorkers())
        commits = RunCommits()
        commits.close()
        heeds = Heeds(ShardGate(10), commits, ErrorLimit(job))
        with pytest.raises(EngineClosedError, match="the run has ended"):
            infer_shard(run, planned.plan_id, planned.shards[0], FakeWorkers(), heeds)
        assert read_manifests(run.folder) == []
