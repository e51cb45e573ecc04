"""Workers that are looked for when they are first needed."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from threading import Lock
from types import TracebackType
from typing import Self

from engine.config import EngineConfig
from engine.errors import EngineClosedError
from tasks.workers import Computed, Worker, Workers


class LateWorkers:
    """Those of `opened`, which is entered when they are to start: a run with nothing to compute waits for nobody.

    As a context it leaves `opened`.
    """

    def __init__(self, opened: Callable[[], AbstractContextManager[Workers]]) -> None:
        self._opened = opened
        self._stack = ExitStack()
        self._workers: Workers | None = None
        self._closed = False
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: "type[BaseException] | BaseException | TracebackType | None") -> None:
        self._closed = True
        self._stack.close()

    def start(self) -> None:
        """Raises UserError where there are none."""
        self._there().start()

    def config(self) -> EngineConfig:
        return self._there().config()

    def each(self) -> Sequence[Worker]:
        return () if self._workers is None else self._workers.each()

    def totals(self) -> Computed:
        return Computed() if self._workers is None else self._workers.totals()

    @property
    def stage(self) -> str | None:
        return "looking for workers" if self._workers is None else self._workers.stage

    @property
    def waiting_for(self) -> str | None:
        return None if self._workers is None else self._workers.waiting_for

    def close(self) -> None:
        self._closed = True
        if self._workers is not None:
            self._workers.close()

    def _there(self) -> Workers:
        with self._lock:
            if self._workers is None and not self._closed:
                self._workers = self._stack.enter_context(self._opened())
            if self._closed or self._workers is None:
                raise EngineClosedError("the workers were closed")
            return self._workers
