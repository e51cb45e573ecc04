"""A worker that is one engine in a process of its own."""

from collections.abc import Callable
from pathlib import Path

from engine.config import EngineConfig
from engine.machine.place import Place
from engine.model.checkpoint import ModelFiles
from engine.process.child import Child
from tasks.engine_process.engine_child import EngineChild
from tasks.engine_process.remote_engine import ANYWHERE, RemoteEngine
from tasks.one_engine import OneEngine
from tasks.workers import Computed

StartChild = Callable[[], EngineChild]

# The module whose `main` an engine's process runs.
SERVER = "tasks.engine_process.server"


def own_child() -> Child:
    """A process that imports what an engine needs, and waits for what to load."""
    return Child(SERVER)


class EngineProcess(OneEngine[RemoteEngine]):
    """An engine in a child process, another where that ended, however it ended.

    The first child begins its imports with the making of this, or is a `child` that began before. Where `start_child`
    makes them, on another machine, it makes the first one when it is needed. Every one computes in its `place` there,
    and adds to the file `trace` a line a step.
    """

    def __init__(
        self,
        model: ModelFiles,
        config: EngineConfig,
        *,
        trace: Path | None = None,
        place: Place = ANYWHERE,
        label: str = "the engine",
        child: EngineChild | None = None,
        start_child: StartChild | None = None,
    ) -> None:
        super().__init__(label)
        self._model = model
        self._config = config
        self._trace = trace
        self._place = place
        self._start_child = own_child if start_child is None else start_child
        self._waiting = child if child is not None or start_child is not None else self._start_child()

    @property
    def waiting_for(self) -> str | None:
        engine = self._engine
        return None if engine is None or engine.dead else engine.waiting_for

    def _start_engine(self) -> RemoteEngine:
        child, self._waiting = self._waiting or self._start_child(), None
        return RemoteEngine(child, self._model, self._config, self._trace, self._place)

    def _computed(self, engine: RemoteEngine) -> Computed:
        return engine.computed

    @property
    def _loading_stage(self) -> str:
        engine = self._engine
        return "loading the model" if engine is None else engine.stage

    def _let_go(self) -> None:
        if self._waiting is not None:
            self._waiting.kill()
            self._waiting.how_it_ended()
            self._waiting = None
