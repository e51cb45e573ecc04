"""A run is asked to end from outside, wherever it is, and says how far it is meanwhile."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.errors import EngineClosedError
from engine.plan import ShardWork
from engine.request import RequestOutput
from flows.score import score
from flows.show_runs import find_runs
from flows.stop_run import stop_run
from flows.workers import workers_from
from tasks.job.job import ScoringJob
from tasks.job.job_file import parse_job
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run_record import read_records
from tasks.storage.step_curve import read_curve
from tasks.storage.stop_request import RunStoppedError
from tasks.workers import Computed, OnOutput
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import ask

pytestmark = pytest.mark.usefixtures("prefect_server")


class Waiting(FakeWorkers):
    """Answers `shards` shards, and from then on nothing until it is closed."""

    def __init__(self, shards: int, *, loads: bool = True) -> None:
        super().__init__()
        self._left = shards
        self._loads = loads
        self.closed = threading.Event()
        self.waited_for = threading.Event()

    def config(self) -> EngineConfig:
        return EngineConfig() if self._loads else self._wait()

    def submit(self, work: ShardWork, on_output: OnOutput | None = None) -> "Future[list[RequestOutput]]":
        self._left -= 1
        return super().submit(work, on_output) if self._left >= 0 and not self.closed.is_set() else self._wait()

    def close(self) -> None:
        self.closed.set()

    def _wait(self) -> Any:
        self.waited_for.set()
        self.closed.wait(60)
        raise EngineClosedError("closed")


def when(event: threading.Event, action: Callable[[], object]) -> threading.Thread:
    """Does the action in a thread of its own, once the event is there."""

    def wait() -> None:
        assert event.wait(60)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.fixture
def job(small_job: dict[str, Any]) -> ScoringJob:
    return parse_job(small_job | {"shard_seconds": 1e-6}, "test")


def stopped_with(job: ScoringJob, workers: Waiting, look: Callable[[], object] = lambda: None) -> str:
    """What the run's end says that is looked at, and asked to stop, once its workers are waited for."""
    stopping = when(workers.waited_for, lambda: (look(), stop_run(job.output_folder, 30)))
    with workers_from(lambda _: nullcontext(workers)), pytest.raises(RunStoppedError) as stopped:
        score(job)
    stopping.join()
    return str(stopped.value)


def counts_while_it_runs(folder: Path) -> dict[str, Any]:
    """The run as SQL has it, once it has counted what is committed."""
    deadline = time.monotonic() + 30
    committed = "select sum(rows)::int as n from shards"
    while time.monotonic() < deadline:
        [run] = ask(folder, "select status, rows, rows_done, row_errors, scored, errors from runs")
        if run["rows_done"] == ask(folder, committed)[0]["n"] + 1:
            return run
        time.sleep(0.1)
    pytest.fail(f"{run}")


def test_what_is_committed_stays_and_the_same_call_continues(
    job: ScoringJob, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[dict[str, Any]] = []
    said = stopped_with(job, Waiting(4), lambda: seen.append(counts_while_it_runs(job.output_folder)))
    counted = ask(job.output_folder, "select count(*) as n from results")[0]["n"]
    assert 0 < counted < 20
    assert said == f"stopped by trunkline stop with {counted + 1} of 21 rows done; the same command continues"
    [record] = read_records(OutputFolder(job.output_folder))
    assert (record.status, record.rows_done, record.row_errors) == ("stopped", counted + 1, 1)
    assert seen == [
        {"status": "running", "rows": 21, "rows_done": counted + 1, "row_errors": 1, "scored": counted, "errors": 0}
    ]
    asked, ended = capsys.readouterr().out.splitlines()[-2:]
    assert "asked process " in asked
    assert ended.endswith(
        f"{record.run_id} stopped; {counted + 1} of 21 rows are done, trunkline score with the same job continues"
    )

    again = Waiting(100)
    with workers_from(lambda _: nullcontext(again)):
        report = score(job)
    assert report.scored_rows == 20 - counted
    assert [run.state for run in find_runs(job.output_folder)] == ["stopped", "completed"]


def test_planning_that_waits_for_the_model_is_left(
    small_job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))
    job = parse_job(small_job, "test")
    workers = Waiting(0, loads=False)
    assert stopped_with(job, workers) == "stopped by trunkline stop; the same command continues"
    assert [record.status for record in read_records(OutputFolder(job.output_folder))] == ["stopped"]


def test_prefect_calls_it_cancelled_and_tries_no_more(job: ScoringJob) -> None:
    workers = Waiting(2)
    stopping = when(workers.waited_for, lambda: stop_run(job.output_folder, 30))
    with workers_from(lambda _: nullcontext(workers)):
        state = score.with_options(retries=3)(job, return_state=True)
    stopping.join()
    assert state.is_cancelled()
    assert "stopped by trunkline stop" in str(state.message)
    assert len(read_records(OutputFolder(job.output_folder))) == 1


class Counting(FakeWorkers):
    """Has computed more each time that it is asked, from what an earlier run left in its engine on; stands for two."""

    def each(self) -> tuple[FakeWorkers, ...]:
        return self, self

    computed = Computed(5, 1000, 0, 50, busy_seconds=9.0, steps=20)

    def totals(self) -> Computed:
        self.computed += Computed(1, 100, 0, 10, busy_seconds=0.5, steps=2)
        return replace(self.computed, kv_bytes=2**20)


def test_what_a_run_computed_is_kept_over_its_time(small_job: dict[str, Any]) -> None:
    job = parse_job(small_job | {"engine": small_job["engine"] | {"max_num_batched_tokens": 512}}, "test")
    with workers_from(lambda _: nullcontext(Counting())):
        report = score(job)
    folder = OutputFolder(job.output_folder)
    curve = read_curve(folder, report.run_id)
    assert curve.points
    assert (curve.step_tokens, curve.kv_budget_bytes) == (512, 2 * 64 * 2**20)
    assert all(point.prefill == 50 * point.steps == 10 * point.decode for point in curve.points)
    assert {point.kv_bytes for point in curve.points} == {2**20}
    assert "Over the run" in folder.report.read_text() or len(curve.points) < 2
