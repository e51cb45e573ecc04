"""Workers that are one engine at a time, wherever that is."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from engine.config import EngineConfig
from engine.errors import EngineClosedError
from engine.plan import ShardWork
from engine.request import RequestOutput
from tasks.workers import Computed, OnOutput

if TYPE_CHECKING:
    from engine.loop.engine import Engine


class StartedEngine(Protocol):
    """An engine that loads, computes or is dead, as `engine.loop.engine.Engine` does."""

    @property
    def config(self) -> EngineConfig: ...

    @property
    def dead(self) -> bool: ...

    @property
    def loaded(self) -> bool: ...

    def wait_until_loaded(self) -> None: ...

    def submit(self, work: ShardWork, on_output: OnOutput | None = None) -> "Future[list[RequestOutput]]": ...

    def close(self) -> None: ...


EngineT = TypeVar("EngineT", bound=StartedEngine)


class OneEngine(ABC, Generic[EngineT]):
    """An engine that is started when it is first needed, and anew where it died. As a context it closes itself.

    It lives from its making to `close`, and belongs to whoever made it.
    """

    def __init__(self, label: str = "the engine") -> None:
        self.label = label
        self._engine: EngineT | None = None
        self._before = Computed()
        self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: "type[BaseException] | BaseException | TracebackType | None") -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self._closed

    def each(self) -> Sequence[Self]:
        return (self,)

    def start(self) -> None:
        self._living()

    def config(self) -> EngineConfig:
        return self._loaded().config

    def submit(self, work: ShardWork, on_output: OnOutput | None = None) -> "Future[list[RequestOutput]]":
        return self._loaded().submit(work, on_output)

    def totals(self) -> Computed:
        engine = self._engine
        return self._before if engine is None else self._before + self._computed(engine)

    @property
    def stage(self) -> str | None:
        engine = self._engine
        return None if engine is not None and engine.loaded else self._loading_stage

    def close(self) -> None:
        self._closed = True  # before the lock, so that no engine is started behind one that is waited for
        with self._lock:
            if self._engine is not None:
                self._engine.close()
            self._let_go()

    def _living(self) -> EngineT:
        with self._lock:
            if self._closed:
                raise EngineClosedError("the engine was closed")
            if self._engine is None or self._engine.dead:
                if self._engine is not None:
                    self._before += replace(self._computed(self._engine), kv_bytes=0, going=())  # they went with it
                self._engine = None
                self._engine = self._start_engine()
            return self._engine

    def _loaded(self) -> EngineT:
        engine = self._living()
        engine.wait_until_loaded()
        return engine

    @abstractmethod
    def _start_engine(self) -> EngineT:
        """One that has begun to load."""

    @abstractmethod
    def _computed(self, engine: EngineT) -> Computed:
        """All that this one computed, dead or alive."""

    @property
    @abstractmethod
    def _loading_stage(self) -> str:
        """What it does before it can compute."""

    @abstractmethod
    def _let_go(self) -> None:
        """What else was held; called at `close`."""


def computed_by(engine: "Engine") -> Computed:
    counters = engine.counters()
    return Computed(
        counters.finished_requests,
        counters.computed_prompt_tokens,
        counters.label_tokens,
        counters.generated_tokens,
        counters.busy_seconds,
        counters.limit_seconds,
        counters.steps,
        counters.kv_bytes,
        counters.going,
    )
