"""Engines on a Dask cluster's workers, whose steps take no time: their answers, and what is lost with a worker."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

pytest.importorskip("distributed", reason="an extra: pip install trunkline[dask]")

import dask
from distributed import Client, LocalCluster

from engine.errors import EngineDeadError, EngineLostError, EngineNotLoadedError, UserError
from engine.machine.place import Place
from engine.model.checkpoint import resolve_model
from tasks.cluster.asked_model import AskedModel
from tasks.cluster.cluster_workers import ClusterWorkers
from tasks.dask_cluster.dask_child import DaskChild
from tasks.dask_cluster.dask_workers import LASTING, QUIET, DaskCluster, DaskWorker, dask_workers
from tasks.dask_cluster.known_workers import known_workers
from tasks.job.job import ScoringJob
from tests.tasks.conftest import JobMaker
from tests.tasks.dask_cluster.on_workers import SlowToBegin, cannot_import, tells_late
from tests.tasks.engine_process.test_engine_process import CONFIG, assert_equal, wait_for, work
from tests.tasks.fakes import write_model
from tests.tasks.steps import table
from tests.tasks.test_several_workers import EACH, ROWS, run_on

FAKE = "tests.tasks.engine_process.fake_server"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two workers, each with a nanny, which starts another where it is killed."""
    with (
        dask.config.set(LASTING),
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=None) as made,
    ):
        yield made


@pytest.fixture
def model(tmp_path: Path) -> AskedModel:
    folder = str(write_model(tmp_path / "fine"))
    return AskedModel(folder, resolve_model(folder))


@pytest.fixture
def workers(
    cluster: LocalCluster, model: AskedModel, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ClusterWorkers[DaskWorker]]:
    monkeypatch.setattr("tasks.dask_cluster.dask_workers.DaskChild", lambda *of: DaskChild(*of, FAKE))
    monkeypatch.setattr("tasks.cluster.cluster_workers.LOOK_SECONDS", 0.2)
    with dask_workers(model, CONFIG, cluster.scheduler_address, 2, ()) as made:
        yield made


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as made:
        yield made


def wait_for_another(client: Client, before: set[str]) -> None:
    """In the place of one of those that were there."""
    wait_for(lambda: len({*known_workers(client)} - before) == 1 and len(known_workers(client)) == 2)


def kill_one(client: Client) -> None:
    os.kill(min(client.run(os.getpid).values()), signal.SIGKILL)


def test_each_worker_answers_in_the_order_of_its_requests(workers: ClusterWorkers[DaskWorker]) -> None:
    workers.start()
    assert workers.config() == CONFIG
    wait_for(lambda: workers.stage is None)
    first, second = workers.each()
    futures = [first.submit(work(20)), second.submit(work(5))]
    assert_equal(futures[0].result(10), work(20).requests)
    assert_equal(futures[1].result(10), work(5).requests)
    assert workers.totals().requests == 25


@pytest.mark.fault(2)
def test_an_engine_that_dies_is_replaced_where_it_was(workers: ClusterWorkers[DaskWorker], client: Client) -> None:
    first, second = workers.each()
    before = client.run(os.getpid)
    client.run(lambda: os.environ.update(FAILPOINT="engine.step:2:kill"))
    with pytest.raises(EngineDeadError, match="SIGKILL"):
        first.submit(work(5)).result(10)
    client.run(lambda: os.environ.pop("FAILPOINT"))
    assert_equal(first.submit(work(5)).result(10), work(5).requests)
    assert_equal(second.submit(work(5)).result(10), work(5).requests)
    assert client.run(os.getpid) == before


@pytest.mark.fault(2)
def test_a_worker_that_is_killed_is_lost_and_who_comes_instead_joins(
    workers: ClusterWorkers[DaskWorker], client: Client
) -> None:
    both = workers.each()
    for worker in both:
        worker.submit(work(1)).result(10)
    kill_one(client)
    wait_for(lambda: len({*workers.each()} - {*both}) == 1 and len(workers.each()) == 2)
    [gone] = {*both} - {*workers.each()}
    with pytest.raises((EngineDeadError, EngineLostError)):
        gone.submit(work(1)).result(10)
    with pytest.raises(EngineLostError, match="starts no engine"):
        gone.submit(work(1))
    for worker in workers.each():
        assert_equal(worker.submit(work(2)).result(10), work(2).requests)


@pytest.mark.fault(2)
def test_a_run_loses_nothing_with_a_worker(
    workers: ClusterWorkers[DaskWorker], client: Client, job_of: JobMaker
) -> None:
    _loses_nothing(job_of(ROWS, **EACH, task={"type": "generate"}, sampling={"max_tokens": 2}), workers, client)


@pytest.mark.nightly
@pytest.mark.fault(2)
def test_a_run_into_a_bucket_loses_nothing_with_a_worker(
    workers: ClusterWorkers[DaskWorker], client: Client, job_of: JobMaker, s3_url: str, tmp_path: Path
) -> None:
    place = f"{s3_url}/dask/{tmp_path.name}"
    asked = {"task": {"type": "generate"}, "sampling": {"max_tokens": 2}, "output": place}
    _loses_nothing(job_of(ROWS, **EACH, **asked), workers, client)


def _loses_nothing(job: ScoringJob, workers: ClusterWorkers[DaskWorker], client: Client) -> None:
    """Who is killed in the middle costs no row, and no answer is another one."""
    killer = Thread(target=lambda: _when_a_shard_is_committed(job, client))
    killer.start()
    assert run_on(job, workers) == (24, 0, 0)  # type: ignore[arg-type]
    killer.join()
    again = job.model_copy(update={"output": f"{job.output}-again"})
    assert run_on(again, workers) == (24, 0, 0)  # type: ignore[arg-type]
    assert table(job) == table(again)


def _when_a_shard_is_committed(job: ScoringJob, client: Client) -> None:
    deadline = time.monotonic() + 30
    while not list((job.output_folder / "manifests").glob("shard-*")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    kill_one(client)


def test_another_model_there_is_refused(cluster: LocalCluster, model: AskedModel, tmp_path: Path) -> None:
    (tmp_path / "fine" / "model.safetensors").write_bytes(b"other")
    said = r"^model\.path: another model lies at /.*/fine \(on tcp://[\d.:]+\)$"
    with pytest.raises(UserError, match=said), dask_workers(model, CONFIG, cluster.scheduler_address, 2, ()):
        pass


def test_who_joins_with_another_model_is_not_asked(
    workers: ClusterWorkers[DaskWorker], client: Client, model: AskedModel, caplog: pytest.LogCaptureFixture
) -> None:
    before = {*workers.each()}
    Path(model.path, "model.safetensors").write_bytes(b"other")
    kill_one(client)
    wait_for(lambda: bool(workers.each()) and "a Dask worker that joined is not asked for anything" in caplog.text)
    assert {*workers.each()} < before


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (cannot_import, r"^runner: a Dask worker needs the run's environment: ModuleNotFoundError: .* \(on tcp://"),
        (tells_late, "^runner: no Dask worker answers when it is asked for the model; "),
    ],
)
def test_workers_that_cannot_be_asked_for_the_model(
    client: Client, model: AskedModel, monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], bytes], said: str
) -> None:
    monkeypatch.setattr("tasks.dask_cluster.dask_workers.tell_model", answer)
    if answer is tells_late:
        monkeypatch.setattr("tasks.cluster.cluster_workers.SECONDS_TO_TELL", 0.2)
    with pytest.raises(UserError, match=said):
        ClusterWorkers(DaskCluster(client), model, CONFIG)
    Path(model.path, "go").touch()


def test_nobody_waits_for_who_joins(
    workers: ClusterWorkers[DaskWorker], client: Client, model: AskedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the model, which may take minutes; the others are there meanwhile."""
    both, addresses = {*workers.each()}, {*known_workers(client)}
    monkeypatch.setattr("tasks.dask_cluster.dask_workers.tell_model", tells_late)
    kill_one(client)
    wait_for_another(client, addresses)
    time.sleep(0.3)
    assert len(workers.each()) == 1
    assert {*workers.each()} < both
    Path(model.path, "go").touch()
    wait_for(lambda: len(workers.each()) == 2)


def test_a_run_begins_with_who_is_ready(
    cluster: LocalCluster, client: Client, model: AskedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other is asked behind a task of somebody else's, and joins once that is done."""
    monkeypatch.setattr("tasks.cluster.cluster_workers.LOOK_SECONDS", 0.1)
    monkeypatch.setattr("tasks.cluster.cluster_workers.SECONDS_TO_FOLLOW", 0.3)
    go = Path(model.path, "go")
    busy = client.submit(tells_late, model.path, workers=[max(known_workers(client))], pure=False)
    with dask_workers(model, CONFIG, cluster.scheduler_address, 2, ()) as workers:
        assert len(workers.each()) == 1
        assert not busy.done()
        go.touch()
        wait_for(lambda: len(workers.each()) == 2)


def test_a_worker_that_is_slow_to_begin_is_not_gone(
    workers: ClusterWorkers[DaskWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = workers.each()
    with monkeypatch.context() as changed:
        changed.setattr("tasks.dask_cluster.dask_child.HeldChild", SlowToBegin)
        changed.setattr("tasks.dask_cluster.dask_child.SECONDS_TO_START", 0.2)
        changed.setattr("tasks.dask_cluster.dask_child.LOOK_SECONDS", 0.1)
        with pytest.raises(EngineNotLoadedError, match=r"starts no engine: none in 0\.2 s"):
            first.submit(work(1))
    assert workers.each() == (first, second)
    assert_equal(first.submit(work(2)).result(10), work(2).requests)


def test_who_begins_again_at_an_address_is_another(
    workers: ClusterWorkers[DaskWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a port of its own: the engine that was there went with the process."""
    first, second = workers.each()
    address = first.label.removeprefix("the Dask worker ")

    def known(client: Client) -> dict[str, dict[str, Any]]:
        found = known_workers(client)
        return found | {address: found[address] | {"local_directory": "another's"}}

    monkeypatch.setattr("tasks.dask_cluster.dask_workers.known_workers", known)
    with pytest.raises(EngineLostError, match="starts no engine: it is gone"):
        first.submit(work(1))
    wait_for(lambda: len(workers.each()) == 2 and first not in workers.each())
    [another] = {*workers.each()} - {second}
    assert another.label == first.label
    assert_equal(another.submit(work(2)).result(10), work(2).requests)


def test_one_that_joins_and_goes_at_once_ends_nothing(
    workers: ClusterWorkers[DaskWorker], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, addresses = {*workers.each()}, {*known_workers(client)}
    asked: list[object] = []

    def gone(*of: object) -> DaskChild:
        asked.append(of)
        raise EngineLostError("it went")

    monkeypatch.setattr("tasks.dask_cluster.dask_workers.DaskChild", gone)
    kill_one(client)
    wait_for(lambda: len(workers.each()) == 1 and bool(asked))
    assert {*workers.each()} < before
    wait_for_another(client, addresses)


@pytest.mark.fault(21)
def test_a_worker_that_is_frozen_is_taken_for_gone(
    workers: ClusterWorkers[DaskWorker], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = workers.each()
    first.submit(work(1)).result(10)
    monkeypatch.setattr("tasks.dask_cluster.dask_child.SECONDS_OF_A_CALL", 3.0)
    monkeypatch.setattr("tasks.dask_cluster.dask_child.SECONDS_TO_START", 0.5)
    addresses = {*known_workers(client)}
    pid = client.run(os.getpid)[first.label.removeprefix("the Dask worker ")]
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises((EngineDeadError, EngineLostError)):
            first.submit(work(1)).result(30)
    finally:
        os.kill(pid, signal.SIGKILL)
        wait_for_another(client, addresses)


def test_a_scheduler_that_is_not_there_is_refused(model: AskedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.dask_cluster.dask_workers.SECONDS_TO_CONNECT", 0.5)
    said = r"^dask_scheduler: nobody answers at tcp://127\.0\.0\.1:9 "
    with pytest.raises(UserError, match=said), dask_workers(model, CONFIG, "tcp://127.0.0.1:9", 1, ()):
        pass


def test_workers_that_do_not_join_are_not_waited_for_for_ever(
    cluster: LocalCluster, client: Client, model: AskedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for(lambda: len(known_workers(client)) == 2)  # one may begin again, behind the tests before
    monkeypatch.setattr("tasks.cluster.cluster_workers.SECONDS_TO_JOIN", 0.5)
    said = r"^runner: 2 of 9 Dask workers joined in 0\.5 s; "
    with pytest.raises(UserError, match=said), dask_workers(model, CONFIG, cluster.scheduler_address, 9, ()):
        pass


def test_workers_of_the_runs_own_cluster_sample_nothing_and_those_in_their_place(
    model: AskedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long another takes to come in the place of one that was killed."""
    monkeypatch.setitem(dask.config.config["distributed"]["deploy"], "lost-worker-timeout", "1ms")

    def settings(client: Client) -> list[dict[str, object]]:
        return list(client.run(lambda: {name: dask.config.get(name) for name in QUIET}).values())

    before = {name: dask.config.get(name) for name in QUIET}
    with dask_workers(model, CONFIG, None, 1, [Place(threads=1)]) as workers:
        assert isinstance(workers._cluster, DaskCluster)
        client = workers._cluster._client
        assert settings(client) == [QUIET]
        first = {*known_workers(client)}
        kill_one(client)
        wait_for(lambda: len({*known_workers(client)} - first) == 1)
        assert settings(client) == [QUIET]
        assert {name: dask.config.get(name) for name in QUIET} == before, "another cluster of this process is its own"
