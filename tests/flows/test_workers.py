"""Runs over an engine in a process of its own, as commands and deployments have it."""

import sys
import time
from pathlib import Path
from threading import Thread

import psutil
import pytest

from engine.errors import UserError
from flows.score import score
from flows.workers import begun_process, kept_engines, own_processes, own_workers, workers_from
from tasks.job.job import ScoringJob
from tasks.job.job_file import parse_job
from tasks.query import query
from tasks.storage.run import open_run
from tests.flows.conftest import Job

pytestmark = pytest.mark.usefixtures("prefect_server")

TABLE = "SELECT custom_id, label, round(label_probs[label], 4) AS probability FROM results ORDER BY custom_id"


def engines() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if "tasks.engine_process.server" in " ".join(child.cmdline())]


def job_of(content: Job, output: str) -> ScoringJob:
    return parse_job(content | {"output": f"{content['output']}-{output}"}, "test")


def table(job: ScoringJob) -> list[dict[str, object]]:
    with query(job.output_folder, TABLE) as result:
        rows: list[dict[str, object]] = result.table().to_pylist()
        return rows


def kill_engine_once(manifests: Path) -> None:
    """When a shard is committed; the others are on their way."""
    deadline = time.monotonic() + 60
    while not list(manifests.glob("shard-*")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for engine in engines():
        engine.kill()


@pytest.mark.fault(2)
def test_an_engine_is_kept_from_run_to_run_and_replaced_where_it_is_killed(small_job: Job) -> None:
    small_job["shard_seconds"] = 1e-6
    here, first, killed = (job_of(small_job, name) for name in ("here", "first", "killed"))
    score(here)
    assert engines() == []
    with kept_engines():
        score(first)
        [kept] = engines()
        killer = Thread(target=kill_engine_once, args=(killed.output_folder / "manifests",))
        killer.start()
        report = score(killed)
        killer.join()
        [other] = engines()
        assert other.pid != kept.pid
    assert engines() == []
    assert table(first) == table(here)
    assert (report.published.results, report.published.errors, report.published.missing) == (20, 1, 0)
    assert table(killed) == table(here)


def test_a_run_with_nothing_to_do_leaves_no_process(small_job: Job) -> None:
    job = job_of(small_job, "again")
    score(job)
    with workers_from(own_processes):
        assert score(job).scored_rows == 0
    assert engines() == []


def test_a_trace_is_emptied_before_a_run_and_its_file_closed(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text("of an earlier run\n")
    with begun_process(trace):
        assert trace.read_text() == ""
    assert not [one for one in recwarn if trace.name in str(one.message)]


def test_a_cluster_that_is_away_is_not_missed_by_a_run_with_nothing_to_do(small_job: Job) -> None:
    pytest.importorskip("distributed", reason="an extra: pip install trunkline[dask]")
    score(job_of(small_job, "again"))
    again = job_of(small_job | {"runner": "dask", "dask_scheduler": "tcp://127.0.0.1:9"}, "again")
    with workers_from(own_workers):
        assert score(again).scored_rows == 0


@pytest.mark.parametrize(("runner", "library"), [("dask", "distributed"), ("ray", "ray")])
def test_a_cluster_whose_library_is_not_installed_is_refused(
    small_job: Job, monkeypatch: pytest.MonkeyPatch, runner: str, library: str
) -> None:
    for name in [name for name in sys.modules if name.startswith(f"tasks.{runner}_cluster.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    said = rf"^runner: {runner} needs trunkline\[{runner}\], which is not installed \(.*{library}"
    with open_run(job_of(small_job | {"runner": runner}, runner)) as run, pytest.raises(UserError, match=said):
        own_workers(run)
