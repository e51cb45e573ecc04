"""An engine's process, whose steps take no time here: what it tells, how it ends, and another in its place."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Thread

import numpy as np
import psutil
import pytest

from engine.config import EngineConfig
from engine.errors import EngineClosedError, EngineDeadError, EngineNotLoadedError, UserError
from engine.machine.device import resolve_device
from engine.machine.device_turn import DeviceTurn, lock_names
from engine.model.checkpoint import ModelFiles
from engine.plan import ShardWork
from engine.process.child import SECONDS_TO_END
from engine.request import Request, RequestOutput
from tasks.engine_process.engine_process import EngineProcess
from tasks.workers import Computed, Workers
from tests.tasks.engine_process.fake_server import answer

FAKE = "tests.tasks.engine_process.fake_server"
CONFIG = EngineConfig(device="cpu", step_timeout=1.0)


def model(name: str = "fine") -> ModelFiles:
    return ModelFiles(name, Path("/nowhere"), None, "")


def work(count: int, adapter: str | None = None) -> ShardWork:
    requests = [Request(f"r{i}", np.arange(i, dtype=np.int32), adapter=adapter) for i in range(count)]
    return ShardWork("layout", 0, "shard", (), tuple(requests), (0,) * count)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path))
    monkeypatch.setattr("tasks.engine_process.engine_process.SERVER", FAKE)


@pytest.fixture
def workers() -> Iterator[EngineProcess]:
    with EngineProcess(model(), CONFIG) as made:
        yield made


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children() -> set[int]:
    """Engines' processes that this one has."""
    return {child.pid for child in psutil.Process().children() if FAKE in " ".join(child.cmdline())}


def assert_equal(outputs: list[RequestOutput], requests: tuple[Request, ...]) -> None:
    assert [repr(one) for one in outputs] == [repr(answer(request)) for request in requests]


def test_a_shard_is_answered_in_the_order_of_its_requests(workers: EngineProcess) -> None:
    held: Workers = workers
    assert (held.totals(), held.stage) == (Computed(), "loading the model")
    held.start()
    assert held.config() == CONFIG
    came: list[RequestOutput] = []
    asked = work(20)
    outputs = held.submit(asked, came.append).result(10)
    assert_equal(outputs, asked.requests)
    assert_equal(came, asked.requests[::-1])
    assert all(type(one.embedding) is np.ndarray for one in outputs)
    assert held.totals() == Computed(20, 20, 20, 20)
    assert held.totals().limit_share == 0.5
    assert held.stage is None


def test_shards_of_several_threads(workers: EngineProcess) -> None:
    futures: dict[int, Future[list[RequestOutput]]] = {}

    def submit(count: int) -> None:
        futures[count] = workers.submit(work(count))

    threads = [Thread(target=submit, args=(count,)) for count in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for count, future in futures.items():
        assert_equal(future.result(10), work(count).requests)


def test_what_the_engine_logs_is_logged_here(workers: EngineProcess, caplog: pytest.LogCaptureFixture) -> None:
    workers.submit(work(1)).result(10)
    wait_for(lambda: ("kernels.pretended", logging.WARNING, "answered r0") in caplog.record_tuples)


def test_a_shard_that_cannot_run_is_the_users(workers: EngineProcess) -> None:
    with pytest.raises(UserError, match=r"^model\.adapters: none here$"):
        workers.submit(work(2, adapter="lost")).result(10)
    assert len(workers.submit(work(2)).result(10)) == 2


def test_who_cannot_take_an_output_loses_its_own_shard_alone(workers: EngineProcess) -> None:
    def broken(_: RequestOutput) -> None:
        raise ValueError("no room here")

    first = workers.submit(work(3), broken)
    second = workers.submit(work(3))
    with pytest.raises(ValueError, match="no room here"):
        first.result(10)
    assert len(second.result(10)) == 3


@pytest.mark.fault(2)
@pytest.mark.parametrize(
    ("action", "how"),
    [
        ("kill", r"killed \(SIGKILL\), perhaps because the machine ran out of memory"),
        ("crash", r"a segmentation fault \(SIGSEGV\)"),
        ("error", r"OSError: \[Errno 5\] failpoint engine.step"),
    ],
)
def test_what_ends_a_step_ends_its_shards_and_the_next_has_another(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, action: str, how: str
) -> None:
    monkeypatch.setenv("FAILPOINT", f"engine.step:3:{action}")
    with EngineProcess(model(), CONFIG) as workers:
        came: list[RequestOutput] = []
        with pytest.raises(EngineDeadError, match=f"^the engine died: .*{how}") as dead:
            workers.submit(work(5), came.append).result(10)
        if action != "kill":
            assert "fake_server.py" in "".join(dead.value.__notes__), "where it was"
        assert not isinstance(dead.value, EngineNotLoadedError)
        [warning] = [text for name, _, text in caplog.record_tuples if name.startswith("tasks.engine_process")]
        assert warning.startswith(f"{dead.value}\n")
        monkeypatch.delenv("FAILPOINT")
        before = workers.totals()
        assert_equal(workers.submit(work(5)).result(10), work(5).requests)
        # What the dead one had told counts on.
        assert workers.totals().requests == before.requests + 5
        if action == "error":
            assert_equal(came, work(5).requests[:2:-1])


@pytest.mark.fault(21)
@pytest.mark.parametrize("action", ["hang", "seize"])
def test_an_engine_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    monkeypatch.setenv("FAILPOINT", f"engine.step:2:{action}")
    with EngineProcess(model(), CONFIG) as workers:
        workers.start()
        workers.config()
        started = time.monotonic()
        future = workers.submit(work(3))
        with pytest.raises(EngineDeadError, match=r"no step ended in 1 s \(engine\.step_timeout\)") as dead:
            future.result(30)
        assert 1.0 <= time.monotonic() - started < 8.0
        assert "failpoint.py" in "".join(dead.value.__notes__), "where it hung"
        assert children() == set()
        monkeypatch.delenv("FAILPOINT")
        assert len(workers.submit(work(3)).result(10)) == 3


@pytest.mark.fault(21)
def test_an_engine_that_is_stopped_hangs(workers: EngineProcess) -> None:
    workers.submit(work(1)).result(10)
    [pid] = children()
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineDeadError, match="no step ended in 1 s"):
        workers.submit(work(3)).result(30)
    assert len(workers.submit(work(3)).result(10)) == 3


def test_an_engine_without_work_does_not_hang(workers: EngineProcess) -> None:
    workers.submit(work(1)).result(10)
    time.sleep(1.5 * CONFIG.step_timeout)
    before = children()
    assert len(workers.submit(work(3)).result(10)) == 3
    assert children() == before


def test_what_the_load_refuses_is_said_in_the_same_words() -> None:
    with EngineProcess(model("refused"), CONFIG) as workers:
        workers.start()
        with pytest.raises(UserError, match=r"^model\.path: no good$"):
            workers.submit(work(1))
        with pytest.raises(UserError, match=r"^model\.path: no good$"):
            workers.config()


def test_a_load_that_fails_is_no_shards_fault() -> None:
    with EngineProcess(model("broken"), CONFIG) as workers:
        said = r"^the engine could not be loaded: OSError: \[Errno 5\] the disk is gone$"
        with pytest.raises(EngineNotLoadedError, match=said):
            workers.submit(work(1))


def test_killed_while_it_loads_another_is_loaded() -> None:
    with EngineProcess(model("endless"), CONFIG) as workers:
        workers.start()
        wait_for(lambda: len(children()) == 1)
        [first] = children()
        os.kill(first, signal.SIGKILL)
        with pytest.raises(EngineNotLoadedError, match="killed"):
            workers.submit(work(1))
        workers.start()
        wait_for(lambda: len(children()) == 1)
        [second] = children()
        assert second != first


def test_closed_while_the_model_loads() -> None:
    """Whoever waits is told at once, the process ends, and nothing is loaded again."""
    workers = EngineProcess(model("endless"), CONFIG)
    workers.start()
    wait_for(lambda: workers.stage == "pretending to load")
    told: list[BaseException] = []

    def wait() -> None:
        try:
            workers.submit(work(1))
        except EngineClosedError as error:
            told.append(error)

    waiting = Thread(target=wait)
    waiting.start()
    started = time.monotonic()
    workers.close()
    waiting.join(5)
    assert time.monotonic() - started < SECONDS_TO_END
    assert len(told) == 1
    assert children() == set()
    for call in (workers.start, workers.config, lambda: workers.submit(work(1))):
        with pytest.raises(EngineClosedError):
            call()


def test_closed_while_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILPOINT", "engine.step:1:seize")
    workers = EngineProcess(model(), EngineConfig(device="cpu"))
    future = workers.submit(work(1))
    started = time.monotonic()
    workers.close()
    assert time.monotonic() - started < SECONDS_TO_END + 1
    with pytest.raises(EngineClosedError):
        future.result(0)
    assert children() == set()


def test_one_that_is_never_asked_ends_too() -> None:
    before = len(psutil.Process().open_files()), psutil.Process().num_fds()
    with EngineProcess(model(), CONFIG):
        wait_for(lambda: len(children()) == 1)  # its command line comes a moment after itself
    assert children() == set()
    assert (len(psutil.Process().open_files()), psutil.Process().num_fds()) == before


def test_whoever_waits_for_the_device_is_told_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    ours = DeviceTurn(lock_names(resolve_device(CONFIG)), pid=4321)
    ours.take("here", given_up=lambda: False)
    with EngineProcess(model(), CONFIG) as workers:
        workers.start()
        wait_for(lambda: str(workers.waiting_for).startswith("process 4321 on "))
        ours.give("here")
        workers.submit(work(1)).result(10)
        wait_for(lambda: workers.waiting_for is None)
        waiting = Thread(target=ours.take, args=("here",), kwargs={"given_up": lambda: workers.closed})
        waiting.start()
        # The engine's process has it, but what a person may end is this one.
        wait_for(lambda: str(ours.waiting_for).startswith(f"process {os.getpid()} on "))
    waiting.join(5)
    ours.give("here")
