"""A run on two workers writes what it writes on one, whoever of them dies."""

from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from engine.process.child import Child
from flows.score import score
from flows.workers import own_processes, workers_from
from tasks.job.job import ScoringJob
from tasks.job.job_file import parse_job
from tasks.query import query
from tasks.storage.manifests import read_manifests
from tasks.storage.open_folder import folder_of
from tasks.storage.output_folder import OutputFolder
from tests.flows.conftest import Job

pytestmark = pytest.mark.usefixtures("prefect_server")

FAKE = "tests.tasks.engine_process.fake_server"
TABLE = "SELECT * EXCLUDE (run_id) FROM (FROM results UNION ALL BY NAME FROM errors) ORDER BY custom_id"
# Which of the test's processes, in the order of their making, is killed: the second run's first.
DOOMED = 1


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))


def job_of(content: Job, output: str, workers: int, **changes: Any) -> ScoringJob:
    engine = content["engine"] | {"device": "cpu", "max_num_batched_tokens": 64, "workers": workers}
    changes |= {"output": f"{content['output']}-{output}", "engine": engine}
    return parse_job(content | changes, "test")


def table(job: ScoringJob) -> list[dict[str, Any]]:
    with query(job.output_folder, TABLE) as result:
        rows: list[dict[str, Any]] = result.table().to_pylist()
        return rows


def shard_rows(job: ScoringJob) -> list[list[dict[str, Any]]]:
    """What each shard's part holds, but for which run wrote it."""
    folder = OutputFolder(job.output_folder)
    manifests = sorted(read_manifests(folder), key=lambda manifest: manifest.shard_index)
    parts = [pq.read_table(folder.parts / file.name) for manifest in manifests for file in manifest.files]
    return [part.drop_columns("run_id").to_pylist() for part in parts]


def start_children(monkeypatch: pytest.MonkeyPatch, server: str) -> list[Child]:
    """Engines' processes as they are made; SIGKILL ends the doomed one in its fourth step."""
    made: list[Child] = []

    def start() -> Child:
        with monkeypatch.context() as patch:
            if len(made) == DOOMED:
                patch.setenv("FAILPOINT", "engine.step:4:kill")
            made.append(Child(server))
        return made[-1]

    monkeypatch.setattr("tasks.engine_process.engine_process.own_child", start)
    return made


def score_both(one: ScoringJob, two: ScoringJob, children: list[Child]) -> None:
    """One worker's run, and one of two workers of which the first is killed."""
    with workers_from(own_processes):
        score(one)
        report = score(two)
    assert len(children) == 4, "another in the killed one's place"
    assert not any(psutil.pid_exists(child.pid) for child in children)
    assert (report.published.results, report.published.errors, report.published.missing) == (20, 1, 0)


@pytest.mark.fault(2)
def test_two_workers_write_what_one_does_where_one_is_killed(small_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"task": {"type": "generate"}, "sampling": {"max_tokens": 3}, "shard_seconds": 1e-6}
    one, two = (job_of(small_job, f"{workers}", workers, **asked) for workers in (1, 2))
    score_both(one, two, start_children(monkeypatch, FAKE))
    assert table(two) == table(one)
    assert shard_rows(two) == shard_rows(one)
    assert len(shard_rows(two)) == 20


@pytest.mark.nightly
@pytest.mark.fault(2)
def test_two_workers_write_into_a_bucket_what_one_does_into_a_folder(
    small_job: Job, monkeypatch: pytest.MonkeyPatch, s3_url: str, tmp_path: Path
) -> None:
    asked = {"task": {"type": "generate"}, "sampling": {"max_tokens": 3}, "shard_seconds": 1e-6}
    one, two = (job_of(small_job, f"{workers}", workers, **asked) for workers in (1, 2))
    two = two.model_copy(update={"output": f"{s3_url}/two/{tmp_path.name}"})
    score_both(one, two, start_children(monkeypatch, FAKE))
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "another machine's"))
    folder_of(two).look()
    assert table(two) == table(one)
    assert shard_rows(two) == shard_rows(one)


@pytest.mark.nightly
@pytest.mark.fault(2)
def test_two_real_workers_answer_as_one_does_where_one_is_killed(
    small_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (job_of(small_job, f"{workers}", workers, shard_seconds=1e-6) for workers in (1, 2))
    score_both(one, two, start_children(monkeypatch, "tasks.engine_process.server"))
    for ours, theirs in zip(table(two), table(one), strict=True):
        assert (ours["custom_id"], ours["label"]) == (theirs["custom_id"], theirs["label"])
        if ours["label_probs"] is not None:
            assert dict(ours["label_probs"]) == pytest.approx(dict(theirs["label_probs"]), abs=1e-5)
