"""Rows that kill the engine: found alone, set aside, in few deaths; the others end as ever."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import EngineDeadError
from engine.plan import ShardWork
from engine.request import RequestOutput
from tasks.job.job import ScoringJob
from tasks.run_failed import EngineKeepsDyingError
from tasks.storage.manifests import read_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.workers import OnOutput
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import outcomes, run_steps, table, use_fakes

KILLER = b"deadly"
ONE_SHARD = {"shard_seconds": 1000.0, "source": {"id": "id"}}


def texts(count: int, deadly: set[int]) -> list[dict[str, str]]:
    """Rows in the order in which they run."""
    return [{"id": f"r{i:02}", "text": f"row {i:02} is {'deadly' if i in deadly else 'good'}"} for i in range(count)]


def expected(count: int, deadly: set[int]) -> dict[str, str]:
    return {f"r{i:02}": "ENGINE_CRASH" if i in deadly else "ok" for i in range(count)}


@pytest.fixture
def deadly_engine(monkeypatch: pytest.MonkeyPatch, engine: FakeWorkers) -> FakeWorkers:
    workers = FakeWorkers(killer=KILLER, step_requests=64)
    use_fakes(monkeypatch, workers)
    return workers


def asked(engine: FakeWorkers) -> list[int]:
    return [len(work.requests) for work in engine.works]


@pytest.mark.fault(20)
def test_a_row_that_kills_the_engine_is_set_aside_and_the_rest_is_scored(
    job_of: JobMaker, deadly_engine: FakeWorkers
) -> None:
    job = job_of(texts(16, {3}), **ONE_SHARD)
    _, published = run_steps(job)
    assert outcomes(job) == expected(16, {3})
    assert (published.results, published.errors, published.missing) == (15, 1, 0)
    # Once beside others and once alone; later halves that end well blame the earlier ones, but for rows 2 and 3.
    assert asked(deadly_engine) == [16, 16, 8, 4, 2, 2, 1, 1, 1]
    assert deadly_engine.killed == 5
    [error] = [row for row in table(job) if row["error_type"] == "ENGINE_CRASH"]
    said = "the engine died 2 times while it computed this row alone; killed by signal 11"
    assert (error["error_message"], error["attempts"]) == (said, 1)


@pytest.mark.fault(20)
def test_the_row_that_is_found_last_costs_a_death_a_halving(job_of: JobMaker, deadly_engine: FakeWorkers) -> None:
    job = job_of(texts(16, {15}), **ONE_SHARD)
    run_steps(job)
    assert outcomes(job) == expected(16, {15})
    assert deadly_engine.killed == 1 + 1 + 4 + 1


def test_rows_that_had_finished_are_not_suspects(job_of: JobMaker, deadly_engine: FakeWorkers) -> None:
    deadly_engine.step_requests = 4
    job = job_of(texts(16, {13}), **ONE_SHARD)
    run_steps(job)
    assert outcomes(job) == expected(16, {13})
    assert asked(deadly_engine) == [16, 4, 2, 1, 1, 1]


def test_the_same_command_asks_a_row_that_kills_no_more_and_a_retry_does(
    job_of: JobMaker, deadly_engine: FakeWorkers
) -> None:
    job = job_of(texts(6, {2}), **ONE_SHARD)
    run_steps(job)
    deadly_engine.works.clear()
    run_steps(job)
    assert deadly_engine.works == []
    deadly_engine.killer = None
    run_steps(job, retry_failed=True)
    assert outcomes(job) == expected(6, set())


def test_a_shard_that_was_only_beside_a_guilty_one_has_no_error(job_of: JobMaker, engine: FakeWorkers) -> None:
    engine.deaths = 1
    job = job_of(texts(6, set()), **ONE_SHARD)
    run_steps(job)
    assert outcomes(job) == expected(6, set())
    assert asked(engine) == [6, 6]


class NeverLoads(FakeWorkers):
    """An engine that dies before it can be asked, so often."""

    def submit(self, work: ShardWork, on_output: OnOutput | None = None) -> "Future[list[RequestOutput]]":
        if self.deaths:
            self.deaths -= 1
            raise EngineDeadError("the engine could not be loaded: killed by signal 9")
        return super().submit(work, on_output)


@pytest.mark.fault(2)
def test_an_engine_that_dies_while_it_loads_is_tried_three_times(
    job_of: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(texts(4, set()), **ONE_SHARD)
    use_fakes(monkeypatch, NeverLoads(deaths=3))
    said = "the engine died 3 times before it was asked for anything"
    with pytest.raises(EngineKeepsDyingError, match=said):
        run_steps(job)
    use_fakes(monkeypatch, NeverLoads(deaths=2))
    run_steps(job)
    assert outcomes(job) == expected(4, set())


@pytest.mark.fault(20)
def test_an_engine_that_dies_of_every_row_ends_the_run_and_no_row_is_blamed(
    job_of: JobMaker, deadly_engine: FakeWorkers
) -> None:
    job = job_of(texts(64, {*range(64)}), **ONE_SHARD)
    with pytest.raises(EngineKeepsDyingError, match=r"died 10 times in a row .* allow more with max_engine_deaths"):
        run_steps(job)
    assert deadly_engine.killed == 1 + 10
    deadly_engine.killer = None
    run_steps(job)
    assert outcomes(job) == expected(64, set())


class Killed(BaseException):
    """In the place of SIGKILL."""


@contextmanager
def killed_at(hit: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def die(*_: int) -> None:
        raise Killed

    with monkeypatch.context() as killing, suppress(Killed):
        killing.setattr(os, "kill", die)
        killing.setattr("engine.failpoint._hits", Counter())
        killing.setenv("FAILPOINT", f"*:{hit}:kill")
        yield


def committed(job: ScoringJob) -> set[str]:
    import pyarrow.parquet as pq

    folder = OutputFolder(job.output_folder)
    names = [part.name for manifest in read_manifests(folder) for part in manifest.files]
    found = [name for part in names for name in pq.ParquetFile(folder.parts / part).read()["request_hash"].to_pylist()]
    assert len(set(found)) == len(found), "no row is committed twice"
    return {*found}


@pytest.mark.fault(20)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    deadly=st.sets(st.integers(0, 11), max_size=12),
    step=st.integers(1, 6),
    kills=st.lists(st.integers(1, 60), max_size=3),
    shard_seconds=st.sampled_from([1e-4, 1000.0]),
    checkpoint_seconds=st.sampled_from([1e-9, 5.0]),
)
def test_any_rows_that_kill_and_any_moments_of_death(
    job_of: JobMaker,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    deadly: set[int],
    step: int,
    kills: list[int],
    shard_seconds: float,
    checkpoint_seconds: float,
) -> None:
    job = job_of(
        texts(12, deadly),
        source={"id": "id"},
        shard_seconds=shard_seconds,
        checkpoint_seconds=checkpoint_seconds,
        max_engine_deaths=1000,
        output=str(tmp_path_factory.mktemp("out") / "run"),
    )
    for hit in [*kills, 10**6]:
        done = committed(job)
        engine = FakeWorkers(killer=KILLER, step_requests=step)
        use_fakes(monkeypatch, engine)
        with killed_at(hit, monkeypatch):
            run_steps(job)
        assert not done & {*engine.scored}, "nothing that was committed is asked again"
    assert outcomes(job) == expected(12, deadly)
