"""The workers that are one engine in this process: loaded once, replaced when they die, ended when they are told."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.config import EngineConfig
from engine.errors import EngineClosedError, EngineDeadError, UserError
from engine.loop.build import start_engine
from engine.loop.engine import CLOSING_SECONDS, Engine
from engine.loop.trace import TraceWriter, read_trace
from engine.model.checkpoint import ModelFiles, resolve_model
from engine.plan import PrefixNode, ShardWork
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.stages import checkpoint
from tasks.in_process import InProcess
from tasks.workers import Computed, Workers

CONFIG = EngineConfig(kv_cache_memory=2**24, device="cpu", max_num_batched_tokens=64)
WORK = ShardWork(
    "layout",
    0,
    "shard",
    (PrefixNode(0, -1, 0, 6, 1),),
    (Request("a", np.arange(5, 11, dtype=np.int32), SamplingParams(max_tokens=3, ignore_eos=True)),),
    (0,),
)


class Starts:
    """`start_engine`, with what it started."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []

    def __call__(self, model: ModelFiles, config: EngineConfig, **options: Any) -> Engine:
        self.engines.append(start_engine(model, config, **options))
        return self.engines[-1]


def engine_that(load: Callable[[], Any]) -> Callable[..., Engine]:
    return lambda *_, **__: Engine(load, CONFIG)


def load_for_ever() -> Any:
    while True:
        checkpoint()
        time.sleep(0.01)


@pytest.fixture
def model(tiny_model: Path) -> ModelFiles:
    return resolve_model(str(tiny_model))


def test_an_engine_is_loaded_once_and_told_of_from_the_first(model: ModelFiles) -> None:
    starts = Starts()
    with InProcess(model, CONFIG, start_engine=starts) as workers:
        held: Workers = workers
        assert (held.totals(), held.stage, starts.engines) == (Computed(), "loading the model", [])
        held.start()
        held.start()
        [output] = held.submit(WORK).result(timeout=60)
        assert len(output.token_ids) == 3
        assert held.stage is None
        assert held.config().max_num_batched_tokens == 64
        assert held.totals() == Computed(requests=1, prefill=6, decode=3)
    assert [engine.dead for engine in starts.engines] == [True]


def test_a_dead_engine_fails_its_shards_and_is_replaced(model: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts()
    with InProcess(model, CONFIG, start_engine=starts) as workers:
        workers.submit(WORK).result(timeout=60)

        def broken(_: object) -> None:
            raise RuntimeError("no room")

        monkeypatch.setattr(starts.engines[0].runner, "forward", broken)
        with pytest.raises(EngineDeadError, match="no room"):
            workers.submit(WORK).result(timeout=60)
        with pytest.raises(EngineDeadError):
            starts.engines[0].submit(WORK)
        [output] = workers.submit(WORK).result(timeout=60)
        assert len(output.token_ids) == 3
        assert len(starts.engines) == 2
        # What the dead one had done counts on.
        assert workers.totals() == Computed(requests=2, prefill=12, decode=6)


def test_a_shard_that_cannot_even_be_queued_is_told_of_it(model: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts()
    with InProcess(model, CONFIG, start_engine=starts) as workers:
        workers.config()

        def broken(*_: object) -> None:
            raise KeyError("node 7")

        monkeypatch.setattr(starts.engines[0].scheduler, "add", broken)
        with pytest.raises(EngineDeadError, match="node 7"):
            workers.submit(WORK).result(timeout=60)


def test_every_engine_is_given_the_trace(model: ModelFiles, tmp_path: Path) -> None:
    starts = Starts()
    writer = TraceWriter(tmp_path / "trace.jsonl")
    with InProcess(model, CONFIG, on_step=writer, start_engine=starts) as workers:
        workers.submit(WORK).result(timeout=60)
        count = starts.engines[0].counters().steps
    assert len(read_trace(tmp_path / "trace.jsonl")) == count > 0


def test_what_the_load_raises_reaches_the_shard(model: ModelFiles) -> None:
    def load() -> Any:
        raise UserError("model.path: no good")

    with InProcess(model, CONFIG, start_engine=engine_that(load)) as workers:
        workers.start()
        with pytest.raises(UserError, match="no good"):
            workers.submit(WORK)


def test_closed_while_the_model_loads(model: ModelFiles) -> None:
    """Whoever waits is told at once, the engine's thread ends, and nothing is loaded again."""
    before = set(threading.enumerate())
    workers = InProcess(model, CONFIG, start_engine=engine_that(load_for_ever))
    workers.start()
    told: list[BaseException] = []

    def wait() -> None:
        try:
            workers.submit(WORK)
        except EngineClosedError as error:
            told.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    started = time.monotonic()
    workers.close()
    waiting.join(5)
    assert time.monotonic() - started < 1
    assert len(told) == 1
    assert set(threading.enumerate()) <= before
    for call in (workers.start, workers.config, lambda: workers.submit(WORK)):
        with pytest.raises(EngineClosedError):
            call()


def test_a_step_of_the_load_that_takes_long_is_not_waited_for(model: ModelFiles) -> None:
    go = threading.Event()

    def load() -> Any:
        go.wait()
        checkpoint()
        pytest.fail("the load went on")

    others = {*threading.enumerate()}
    workers = InProcess(model, CONFIG, start_engine=engine_that(load))
    workers.start()
    started = time.monotonic()
    workers.close()
    assert CLOSING_SECONDS <= time.monotonic() - started < CLOSING_SECONDS + 1
    go.set()
    deadline = time.monotonic() + 5
    while any(thread.name == "trunkline-engine" for thread in {*threading.enumerate()} - others):
        assert time.monotonic() < deadline
        time.sleep(0.01)
