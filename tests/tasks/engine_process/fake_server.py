"""The engine's process with an engine that needs no torch: it starts in a moment, and its steps take none."""

import logging
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from engine.config import EngineConfig
from engine.errors import EngineDeadError, UserError
from engine.failpoint import failpoint
from engine.machine.device_turn import DeviceTurn
from engine.model.checkpoint import ModelFiles
from engine.plan import ShardWork
from engine.request import Request, RequestOutput
from engine.stages import enter
from tasks.engine_process import server

Submitted = tuple[ShardWork, Callable[[RequestOutput], None], "Future[list[RequestOutput]]"]


class FakeEngine:
    """A step a request, the last one first. The model's name says what becomes of the load."""

    def __init__(self, model: ModelFiles, config: EngineConfig, turn: DeviceTurn) -> None:
        self.config = config
        self.dead = False
        self._model = model
        self._turn = turn
        self._steps = 0
        self._inbox: SimpleQueue[Submitted] = SimpleQueue()
        self._loaded: Future[None] = Future()
        Thread(target=self._main, daemon=True).start()

    def wait_until_loaded(self) -> None:
        self._loaded.result()

    def counters(self) -> Any:
        counted = dict.fromkeys(("computed_prompt_tokens", "label_tokens", "generated_tokens"), self._steps)
        counted["kv_bytes"] = 0
        return SimpleNamespace(
            steps=self._steps, finished_requests=self._steps, busy_seconds=0.5, limit_seconds=0.25, going=(), **counted
        )

    def submit(self, work: ShardWork, on_output: Callable[[RequestOutput], None]) -> "Future[list[RequestOutput]]":
        future: Future[list[RequestOutput]] = Future()
        self._inbox.put((work, on_output, future))
        return future

    def _main(self) -> None:
        try:
            self._turn.take(self, given_up=lambda: False)
            enter("pretending to load")
            if self._model.name == "endless":
                time.sleep(600)
            if self._model.name == "refused":
                raise UserError("model.path: no good")
            if self._model.name == "broken":
                raise OSError(5, "the disk is gone")
        except BaseException as error:
            self._loaded.set_exception(error)
            return
        self._loaded.set_result(None)
        while True:
            self._compute(*self._inbox.get())

    def _compute(
        self, work: ShardWork, on_output: Callable[[RequestOutput], None], future: "Future[list[RequestOutput]]"
    ) -> None:
        if any(request.adapter is not None for request in work.requests):
            future.set_exception(UserError("model.adapters: none here"))
            return
        outputs: list[RequestOutput] = []
        try:
            for request in reversed(work.requests):
                failpoint("engine.step")
                self._steps += 1
                outputs.append(answer(request))
                on_output(outputs[-1])
                logging.getLogger("kernels.pretended").warning("answered %s", request.request_id)
        except BaseException as death:
            self.dead = True
            error = EngineDeadError("dead")
            error.__cause__ = death
            future.set_exception(error)
        else:
            future.set_result(outputs[::-1])


def answer(request: Request) -> RequestOutput:
    tokens = request.prompt_token_ids
    return RequestOutput(request.request_id, "length", len(tokens), (int(tokens.sum()),), embedding=np.sqrt(tokens))


def start_engine(model: ModelFiles, config: EngineConfig, *, on_step: None, turn: DeviceTurn) -> FakeEngine:
    return FakeEngine(model, config, turn)


def main() -> None:
    build = ModuleType("engine.loop.build")
    build.__dict__["start_engine"] = start_engine
    sys.modules["engine.loop.build"] = build
    server.main()
