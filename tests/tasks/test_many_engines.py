"""Engines in processes of their own as the workers of one run: what each says of itself is said of all."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest

from engine.errors import EngineClosedError, EngineLostError
from engine.machine.place import Place
from engine.process.child import Child
from tasks.engine_process.engine_process import EngineProcess
from tasks.many_engines import ManyEngines
from tasks.workers import Computed
from tests.tasks.engine_process.test_engine_process import CONFIG, assert_equal, children, fake, model, wait_for, work

assert fake  # the fixture


def lost() -> Child:
    raise EngineLostError("its machine is gone")


def made(name: str = "fine") -> EngineProcess:
    return EngineProcess(model(name), CONFIG)


@pytest.fixture
def two() -> Iterator[ManyEngines]:
    with ManyEngines([made(), made()]) as workers:
        yield workers


def test_each_computes_and_what_all_did_is_added_up(two: ManyEngines) -> None:
    assert (two.totals(), two.stage) == (Computed(), "loading the model")
    two.start()
    assert two.config() == CONFIG
    first, second = two.each()
    futures = [first.submit(work(3)), second.submit(work(5))]
    assert_equal(futures[0].result(10), work(3).requests)
    assert_equal(futures[1].result(10), work(5).requests)
    assert two.totals() == Computed(8, 8, 8, 8)
    assert len(children()) == 2
    two.close()
    assert children() == set()
    with pytest.raises(EngineClosedError):
        first.submit(work(1))


@pytest.mark.fault(2)
def test_one_that_is_killed_takes_its_own_shards_alone() -> None:
    first = made()
    [process] = children()
    with ManyEngines([first, made()]) as workers:
        _, second = workers.each()
        for worker in (first, second):
            worker.submit(work(1)).result(10)
        others = children() - {process}
        os.kill(process, signal.SIGKILL)
        wait_for(lambda: not psutil.pid_exists(process))
        assert_equal(second.submit(work(2)).result(10), work(2).requests)
        assert_equal(first.submit(work(2)).result(10), work(2).requests)
        assert others < children()


def test_one_can_compute_while_another_loads() -> None:
    with ManyEngines([made("endless"), made()]) as workers:
        workers.start()
        wait_for(lambda: workers.stage is None)
        assert len(workers.each()[1].submit(work(2)).result(10)) == 2


def test_one_that_is_lost_hinders_nobody() -> None:
    gone = EngineProcess(model(), CONFIG, child=Child("no_such_module"), start_child=lost)
    with ManyEngines([gone, made()]) as workers:
        workers.start()
        wait_for(lambda: workers.stage is None)
        first, second = workers.each()
        with pytest.raises(EngineLostError, match="its machine is gone"):
            first.submit(work(1))
        assert workers.config() == CONFIG
        assert len(second.submit(work(1)).result(10)) == 1


def test_a_plan_is_for_the_one_that_has_least() -> None:
    """As on GPUs that are unlike."""
    large = replace(CONFIG, kv_cache_memory=2**31, max_num_batched_tokens=64)
    wide = replace(CONFIG, kv_cache_memory=2**30, max_num_batched_tokens=128)
    with ManyEngines([EngineProcess(model(), large), EngineProcess(model(), wide)]) as workers:
        workers.start()
        assert workers.config() == replace(CONFIG, kv_cache_memory=2**30, max_num_batched_tokens=64)


def test_each_is_in_its_place() -> None:
    core = max(os.sched_getaffinity(0))
    with EngineProcess(model(), CONFIG, place=Place((core,), 1)) as there:
        there.submit(work(1)).result(10)
        [process] = children()
        assert os.sched_getaffinity(process) == {core}
