"""Workers that are one engine in this process."""

from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

from engine.config import EngineConfig
from engine.machine.device import resolve_device
from engine.machine.device_turn import DeviceTurn, turn_of
from engine.model.checkpoint import ModelFiles
from engine.stages import hear_stages
from tasks.one_engine import OneEngine, computed_by
from tasks.workers import Computed

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


class InProcess(OneEngine["Engine"]):
    """An engine of this process's own: what ends it, but for an exception in a step, ends the process."""

    def __init__(
        self,
        model: ModelFiles,
        config: EngineConfig,
        *,
        on_step: "OnStep | None" = None,
        start_engine: StartEngine = _start_engine,
    ) -> None:
        super().__init__()
        self._model = model
        self._config = config
        self._on_step = on_step
        self._start = start_engine
        self._turn = turn_of(resolve_device(config), ranks=config.tensor_parallel)
        self._stage = "loading the model"
        self._hearing = ExitStack()
        self._hearing.enter_context(hear_stages(self._enter))

    @property
    def waiting_for(self) -> str | None:
        return self._turn.waiting_for

    def _start_engine(self) -> "Engine":
        return self._start(self._model, self._config, on_step=self._on_step, turn=self._turn)

    def _computed(self, engine: "Engine") -> Computed:
        return computed_by(engine)

    @property
    def _loading_stage(self) -> str:
        return self._stage

    def _let_go(self) -> None:
        self._hearing.close()

    def _enter(self, stage: str) -> None:
        self._stage = stage
