"""A run on two workers writes what it writes on one, whoever of them dies."""

from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from flows.score import score
from flows.workers import own_processes, workers_from
from tasks.engine_process.child import Child
from tasks.job.job import ScoringJob
from tasks.job.job_file import parse_job
from tasks.query import query
from tasks.storage.manifests import read_manifests
from tasks.storage.output_folder import OutputFolder
from tests.flows.conftest import Job

pytestmark = pytest.mark.usefixtures("prefect_server")

FAKE = "tests.tasks.engine_process.fake_server"
TABLE = "SELECT * EXCLUDE (run_id) FROM (FROM results UNION ALL BY NAME FROM errors) ORDER BY custom_id"
# The run's output, its workers, and which of the test's processes, in the order of their making, is killed.
RUNS, DOOMED = (("one", 1), ("two", 2), ("killed", 2)), 3


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


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Child]:
    """Engines' processes of the test, whose steps take no time; SIGKILL ends the doomed one in its fourth step."""
    made: list[Child] = []
    numbers = count()

    def start() -> Child:
        with monkeypatch.context() as patch:
            if next(numbers) == DOOMED:
                patch.setenv("FAILPOINT", "engine.step:4:kill")
            made.append(Child(FAKE))
        return made[-1]

    monkeypatch.setattr("tasks.engine_process.engine_process.Child", start)
    return made


@pytest.mark.fault(2)
def test_two_workers_write_what_one_does_and_lose_nothing_where_one_is_killed(
    small_job: Job, children: list[Child]
) -> None:
    asked = {"task": {"type": "generate"}, "sampling": {"max_tokens": 3}, "shard_seconds": 1e-6}
    one, two, killed = (job_of(small_job, name, workers, **asked) for name, workers in RUNS)
    with workers_from(own_processes):
        score(one)
        score(two)
        assert len(children) == 3
        report = score(killed)
        assert len(children) == 6, "another in the doomed one's place"
    assert not any(psutil.pid_exists(child.pid) for child in children)
    assert (report.published.results, report.published.errors, report.published.missing) == (20, 1, 0)
    assert table(killed) == table(two) == table(one)
    assert shard_rows(killed) == shard_rows(two) == shard_rows(one)
    assert len(shard_rows(two)) == 20
