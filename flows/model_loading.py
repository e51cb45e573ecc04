"""Loads the model while the run is planned, and reads its counters once it is there."""

import importlib
import logging
import threading

from engine.config import EngineConfig
from engine.loop.engine_cache import get_engine
from engine.machine.device import resolve_device
from engine.machine.device_turn import turn_of
from engine.model.checkpoint import ModelFiles
from engine.stages import hear_stages
from flows.progress import Computed


class LoadingEngine:
    """An engine on its way once `start` was called; whoever needs it earlier waits in the engine cache."""

    def __init__(self, model: ModelFiles, config: EngineConfig) -> None:
        self._model = model
        self._config = config
        self._turn = turn_of(resolve_device(config))
        self._ready = threading.Event()
        self._stage = "loading the model"
        self._thread = threading.Thread(target=self._load, name="load-model", daemon=True)

    def start(self) -> None:
        # transformers swaps its own module while it is imported: a second thread that does so at once gets the old one.
        importlib.import_module("engine.loop.build")
        self._thread.start()

    @property
    def waiting_for(self) -> str | None:
        """The process that has the device while the engine waits for it."""
        return self._turn.waiting_for

    @property
    def stage(self) -> str | None:
        """What it does before it can score; None once it can."""
        return None if self._ready.is_set() else self._stage

    def _enter(self, stage: str) -> None:
        self._stage = stage

    def _load(self) -> None:
        try:
            with hear_stages(self._enter):
                self._engine = get_engine(self._model, self._config)
            self._start = self._engine.counters()
        except Exception:
            # The shard that needs the engine tries again and reports.
            logging.getLogger("tasks").debug("the model was not loaded early", exc_info=True)
        else:
            self._ready.set()

    def computed(self) -> Computed:
        """What the engine has done since it was asked for; nothing while the model loads."""
        if not self._ready.is_set():
            return Computed()
        now, start = self._engine.counters(), self._start
        return Computed(
            requests=now.finished_requests - start.finished_requests,
            prefill=now.computed_prompt_tokens - start.computed_prompt_tokens,
            label=now.label_tokens - start.label_tokens,
            decode=now.generated_tokens - start.generated_tokens,
        )
