"""Workers that are one engine in this process."""

import threading
from concurrent.futures import Future
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from engine.config import EngineConfig
from engine.errors import EngineClosedError
from engine.machine.device import resolve_device
from engine.machine.device_turn import DeviceTurn, turn_of
from engine.model.checkpoint import ModelFiles
from engine.plan import ShardWork
from engine.request import RequestOutput
from engine.stages import hear_stages
from tasks.workers import Computed, OnOutput

if TYPE_CHECKING:
    from engine.loop.engine import Engine
    from engine.loop.trace import OnStep


class StartEngine(Protocol):
    """`engine.loop.build.start_engine`, as far as it is used here."""

    def __call__(
        self, model: ModelFiles, config: EngineConfig, *, on_step: "OnStep | None", turn: DeviceTurn | None
    ) -> "Engine": ...


def _start_engine(
    model: ModelFiles, config: EngineConfig, *, on_step: "OnStep | None", turn: DeviceTurn | None
) -> "Engine":
    from engine.loop.build import start_engine  # torch and transformers load here, not with this module

    return start_engine(model, config, on_step=on_step, turn=turn)


class InProcess:
    """An engine that is started when it is first needed, and anew where it died. As a context it closes itself.

    It lives from its making to `close`, and belongs to whoever made it.
    """

    def __init__(
        self,
        model: ModelFiles,
        config: EngineConfig,
        *,
        on_step: "OnStep | None" = None,
        start_engine: StartEngine = _start_engine,
    ) -> None:
        self._model = model
        self._config = config
        self._on_step = on_step
        self._start_engine = start_engine
        self._turn = turn_of(resolve_device(config))
        self._engine: Engine | None = None
        self._before = Computed()
        self._stage = "loading the model"
        self._hearing = ExitStack()
        self._hearing.enter_context(hear_stages(self._enter))
        self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: "type[BaseException] | BaseException | TracebackType | None") -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self._closed

    def start(self) -> None:
        self._living()

    def config(self) -> EngineConfig:
        return self._loaded().config

    def submit(self, work: ShardWork, on_output: OnOutput | None = None) -> "Future[list[RequestOutput]]":
        return self._loaded().submit(work, on_output)

    def totals(self) -> Computed:
        engine = self._engine
        return self._before if engine is None else self._before + _computed(engine)

    @property
    def stage(self) -> str | None:
        engine = self._engine
        return None if engine is not None and engine.loaded else self._stage

    @property
    def waiting_for(self) -> str | None:
        return self._turn.waiting_for

    def close(self) -> None:
        self._closed = True  # before the lock, so that no engine is started behind one that is waited for
        with self._lock:
            if self._engine is not None:
                self._engine.close()
            self._hearing.close()

    def _living(self) -> "Engine":
        with self._lock:
            if self._closed:
                raise EngineClosedError("the engine was closed")
            if self._engine is None or self._engine.dead:
                if self._engine is not None:
                    self._before += _computed(self._engine)
                self._engine = None
                self._engine = self._start_engine(self._model, self._config, on_step=self._on_step, turn=self._turn)
            return self._engine

    def _loaded(self) -> "Engine":
        engine = self._living()
        engine.wait_until_loaded()
        return engine

    def _enter(self, stage: str) -> None:
        self._stage = stage


def _computed(engine: "Engine") -> Computed:
    counters = engine.counters()
    return Computed(
        counters.finished_requests,
        counters.computed_prompt_tokens,
        counters.label_tokens,
        counters.generated_tokens,
    )
