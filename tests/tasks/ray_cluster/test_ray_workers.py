"""Engines on a real Ray cluster's devices, whose steps take no time: their answers, and what is lost with a worker."""

import ctypes
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

pytest.importorskip("ray", reason="an extra: pip install trunkline[ray]")

import ray

from engine.errors import EngineLostError, UserError
from engine.machine.place import Place
from engine.model.checkpoint import resolve_model
from tasks.cluster.asked_model import AskedModel
from tasks.cluster.cluster_workers import ClusterWorkers
from tasks.ray_cluster.ray_child import RayChild
from tasks.ray_cluster.ray_session import own_ray
from tasks.ray_cluster.ray_workers import RayWorker, ray_workers
from tests.tasks.conftest import JobMaker
from tests.tasks.engine_process.test_engine_process import CONFIG, assert_equal, wait_for, work
from tests.tasks.fakes import write_model
from tests.tasks.steps import table
from tests.tasks.test_several_workers import EACH, ROWS, run_on

FAKE = "tests.tasks.engine_process.fake_server"
PLACES = (Place(threads=1), Place(threads=1))

# Each begins processes for seconds, and nobody makes Ray's wait less.
pytestmark = pytest.mark.nightly


@pytest.fixture
def model(tmp_path: Path) -> AskedModel:
    folder = str(write_model(tmp_path / "fine"))
    return AskedModel(folder, resolve_model(folder))


@pytest.fixture(autouse=True)
def fake_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))  # else one of all cores waits for who computes here
    monkeypatch.setattr("tasks.ray_cluster.ray_workers.RayChild", lambda *of: RayChild(*of, FAKE))
    monkeypatch.setattr("tasks.cluster.cluster_workers.LOOK_SECONDS", 0.2)


@pytest.fixture
def workers(model: AskedModel) -> Iterator[ClusterWorkers[RayWorker]]:
    before = rays()
    with ray_workers(model, CONFIG, None, 2, PLACES) as made:
        yield made
    wait_for(lambda: rays() <= before)


def rays() -> set[int]:
    """Whatever this process began, and what that did."""
    return {one.pid for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE}


def actors() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [one for one in children if "DeviceActor" in " ".join(one.cmdline())]


@contextmanager
def programs_ray(cpus: int) -> Iterator[None]:
    """A Ray that a program began itself."""
    # A test's own folder has too long a name for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init("local", num_cpus=cpus, num_gpus=0, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        try:
            yield
        finally:
            ray.shutdown()


def kill_one() -> None:
    min(actors(), key=lambda one: one.pid).kill()


def test_each_worker_answers_in_the_order_of_its_requests(workers: ClusterWorkers[RayWorker]) -> None:
    workers.start()
    assert workers.config() == CONFIG
    wait_for(lambda: workers.stage is None)
    first, second = workers.each()
    futures = [first.submit(work(20)), second.submit(work(5))]
    assert_equal(futures[0].result(10), work(20).requests)
    assert_equal(futures[1].result(10), work(5).requests)
    assert workers.totals().requests == 25
    assert len(actors()) == 2
    kept = Path(ray.nodes()[0]["RayletSocketName"]).parents[3]
    assert (kept.parent, kept.stat().st_mode & 0o777) == (Path("/tmp"), 0o700)


@pytest.mark.fault(2)
def test_an_engine_that_dies_is_replaced_where_it_was(workers: ClusterWorkers[RayWorker]) -> None:
    first, second = workers.each()
    for worker in (first, second):
        worker.submit(work(1)).result(10)
    before = {one.pid for one in actors()}
    engines = [one for each in actors() for one in each.children() if FAKE in " ".join(one.cmdline())]
    assert len(engines) == 2
    for engine in engines:
        engine.kill()
    for worker in (first, second):
        wait_for(lambda worker=worker: worker._engine.dead)  # type: ignore[attr-defined, misc]
        assert_equal(worker.submit(work(5)).result(10), work(5).requests)
    assert {one.pid for one in actors()} == before


@pytest.mark.fault(2)
def test_a_worker_that_is_killed_is_lost_and_who_comes_instead_joins(workers: ClusterWorkers[RayWorker]) -> None:
    both = workers.each()
    for worker in both:
        worker.submit(work(1)).result(10)
    kill_one()
    wait_for(lambda: any(worker._engine.dead for worker in both))  # type: ignore[attr-defined]
    gone = next(worker for worker in both if worker._engine.dead)  # type: ignore[attr-defined]
    with pytest.raises(EngineLostError, match=r"^the Ray worker .*#[12] starts no engine: it is gone"):
        gone.submit(work(1))
    wait_for(lambda: len({*workers.each()} - {*both}) == 1 and len(workers.each()) == 2)
    for worker in workers.each():
        assert_equal(worker.submit(work(2)).result(10), work(2).requests)


@pytest.mark.fault(2)
def test_a_run_loses_nothing_with_a_worker(workers: ClusterWorkers[RayWorker], job_of: JobMaker) -> None:
    """Who is killed in the middle costs no row, and no answer is another one."""
    job = job_of(ROWS, **EACH, task={"type": "generate"}, sampling={"max_tokens": 2})
    killer = Thread(target=lambda: (wait_for(lambda: any(job.output_folder.glob("manifests/shard-*"))), kill_one()))
    killer.start()
    assert run_on(job, workers) == (24, 0, 0)  # type: ignore[arg-type]
    killer.join(30)
    again = job.model_copy(update={"output": f"{job.output}-again"})
    assert run_on(again, workers) == (24, 0, 0)  # type: ignore[arg-type]
    assert table(job) == table(again)


@pytest.mark.fault(21)
def test_a_worker_that_is_frozen_is_taken_for_gone(
    workers: ClusterWorkers[RayWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.ray_cluster.ray_child.SECONDS_OF_A_CALL", 3.0)
    for worker in workers.each():
        worker.submit(work(1)).result(10)
    frozen = actors()[0]
    frozen.suspend()
    try:
        wait_for(lambda: any(worker._engine.dead for worker in workers.each()))  # type: ignore[attr-defined]
    finally:
        frozen.kill()


def test_another_model_there_is_refused(model: AskedModel, tmp_path: Path) -> None:
    (tmp_path / "fine" / "model.safetensors").write_bytes(b"other")
    said = r"^model\.path: another model lies at /.*/fine \(on [\d.]+#\d\)$"
    with pytest.raises(UserError, match=said), ray_workers(model, CONFIG, None, 2, PLACES):
        pass


def test_a_programs_own_ray_is_used_and_goes_on(model: AskedModel) -> None:
    """One device of two CPUs, as a node elsewhere is: it is somebody else's at first, and joins when it is free."""
    with programs_ray(2):
        busy: Any = ray.remote(num_cpus=1)(type("Busy", (), {})).remote()
        ended = Thread(target=lambda: (wait_for(lambda: ray.available_resources().get("CPU") == 1), ray.kill(busy)))
        ended.start()
        with ray_workers(model, CONFIG, None, 1, PLACES) as workers:
            [worker] = workers.each()
            assert_equal(worker.submit(work(2)).result(10), work(2).requests)
        ended.join(30)
        assert ray.is_initialized()


def test_a_second_run_of_this_process_is_told(model: AskedModel) -> None:
    said = "^runner: another run of this process is connected to Ray"
    for address in (None, "auto"):
        with (
            own_ray(1, 0),
            pytest.raises(UserError, match=said),
            ray_workers(model, CONFIG, address, 1, PLACES),
        ):
            pass


def test_a_run_in_any_thread_leaves_sigterm_as_it_was() -> None:
    """Below Python, where Ray has a handler of its own."""

    def below() -> bytes:
        found = ctypes.create_string_buffer(256)
        ctypes.CDLL(None).sigaction(signal.SIGTERM, None, found)
        return found.raw[: ctypes.sizeof(ctypes.c_void_p)]  # the handler

    seen = list[bytes]()

    def run() -> None:
        with own_ray(1, 0):
            seen.append(below())
        seen.append(below())

    before = below()
    thread = Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before, before]
