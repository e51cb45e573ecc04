"""Several workers through the steps, with engines that take no time: whose rows a death costs, and who does them."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from engine.errors import EngineDeadError, EngineLostError
from engine.plan import ShardWork
from engine.request import RequestOutput
from flows.in_flight import run_in_flight
from tasks.deduplicate import deduplicate_requests
from tasks.dispatch import Dispatch, Turn
from tasks.error_limit import ErrorLimit
from tasks.extract import extract_rows
from tasks.infer import infer_shard
from tasks.job.job import ScoringJob
from tasks.plan import make_run_plan
from tasks.publish import publish_results
from tasks.run_failed import EngineKeepsDyingError
from tasks.storage.run import open_run
from tasks.workers import OnOutput, Worker
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import outcomes, run_steps, table, use_fakes

ROWS = [{"id": f"r{i:02}", "text": f"row {i:02} is {'deadly' if i == 5 else 'good'}"} for i in range(24)]
EACH = {"shard_seconds": 1e-6, "source": {"id": "id"}}


class Several(FakeWorkers):
    """The run's workers: `members`, of which one may be lost in the middle of its shards."""

    def __init__(self, *members: FakeWorkers) -> None:
        super().__init__()
        self.members = members

    def each(self) -> Sequence[Worker]:  # type: ignore[override]
        return self.members


class Lost(FakeWorkers):
    """Ends in its third shard, and for ever; whoever has a shard there gets an EngineDeadError first, as `how` says."""

    def submit(self, work: ShardWork, on_output: OnOutput | None = None) -> "Future[list[RequestOutput]]":
        if len(self.works) < 2:
            return super().submit(work, on_output)
        self.works.append(work)
        if len(self.works) > 3:
            raise EngineLostError("its machine is gone")
        future: Future[list[RequestOutput]] = Future()
        future.set_exception(EngineDeadError("its machine is gone"))
        return future


class NeverStarts(FakeWorkers):
    def submit(self, work: ShardWork, on_output: OnOutput | None = None) -> "Future[list[RequestOutput]]":
        raise EngineDeadError("the engine could not be loaded")


def run_on(job: ScoringJob, workers: Several) -> tuple[int, int, int]:
    """Results, errors and missing rows, of a run as the flow has it."""
    with open_run(job) as run, ThreadPoolExecutor() as threads:
        planned = make_run_plan(run, deduplicate_requests(run, extract_rows(run)), workers)
        dispatch = Dispatch(planned.shards, workers, ErrorLimit(job), job.max_engine_deaths)

        def submit(turn: Turn) -> "Future[object]":
            return threads.submit(infer_shard, run, planned.plan_id, turn.shard, turn.worker, turn.heeds)

        def finished(turn: Turn, future: "Future[object]") -> bool:
            dispatch.ended(turn)
            problem = future.exception()
            if isinstance(problem, EngineLostError | EngineKeepsDyingError) and dispatch.move(turn, problem):
                return True
            future.result()
            return True

        run_in_flight(dispatch.next, submit, finished, lambda: None)  # type: ignore[arg-type]
        published = publish_results(run, planned.plan_id)
    return published.results, published.errors, published.missing


@pytest.fixture
def job(job_of: JobMaker) -> ScoringJob:
    return job_of(ROWS, **EACH)


@pytest.mark.fault(2, 20)
def test_a_row_that_kills_engines_kills_one_workers_alone(job: ScoringJob) -> None:
    first, second = (FakeWorkers(killer=b"deadly") for _ in range(2))
    assert run_on(job, Several(first, second)) == (23, 1, 0)
    assert {row: end for row, end in outcomes(job).items() if end != "ok"} == {"r05": "ENGINE_CRASH"}
    assert sorted(worker.killed for worker in (first, second)) == [0, 3], "once beside others, and twice alone"
    assert len(first.works) > 3
    assert len(second.works) > 3


@pytest.mark.fault(2)
@pytest.mark.parametrize("lost", [Lost, NeverStarts])
def test_what_a_lost_worker_had_is_done_by_the_other(
    job: ScoringJob, lost: type[FakeWorkers], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_on(job, Several(lost(), FakeWorkers())) == (24, 0, 0)
    undisturbed = job.model_copy(update={"output": f"{job.output}-undisturbed"})
    use_fakes(monkeypatch, FakeWorkers())
    run_steps(undisturbed)
    assert table(job) == table(undisturbed)


def test_a_run_without_workers_ends_and_another_continues(job: ScoringJob) -> None:
    with pytest.raises(EngineLostError, match="its machine is gone"):
        run_on(job, Several(Lost(), Lost()))
    there = FakeWorkers()
    assert run_on(job, Several(there, FakeWorkers())) == (24, 0, 0)
    assert len(there.works) < 24
