"""Loads the model while the run is planned, and reads its counters once it is there."""

import importlib
import logging
import threading

from engine.config import EngineConfig
from engine.device import resolve_device
from engine.device_turn import turn_of
from engine.engine_cache import get_engine
from engine.model import ModelFiles


class LoadingEngine:
    """An engine on its way once `start` was called; whoever needs it earlier waits in the engine cache."""

    def __init__(self, model: ModelFiles, config: EngineConfig) -> None:
        self._model = model
        self._config = config
        self._turn = turn_of(resolve_device(config))
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._load, name="load-model", daemon=True)

    def start(self) -> None:
        # transformers swaps its own module while it is imported: a second thread that does so at once gets the old one.
        importlib.import_module("engine.build")
        self._thread.start()

    @property
    def waiting_for(self) -> str | None:
        """The process that has the device while the engine waits for it."""
        return self._turn.waiting_for

    def _load(self) -> None:
        try:
            self._engine = get_engine(self._model, self._config)
            self._start = self._engine.counters()
        except Exception:
            # The shard that needs the engine tries again and reports.
            logging.getLogger("tasks").debug("the model was not loaded early", exc_info=True)
        else:
            self._ready.set()

    def totals(self) -> tuple[int, int]:
        """Requests finished and tokens computed since it was asked for; zeros while the model loads."""
        if not self._ready.is_set():
            return 0, 0
        now, start = self._engine.counters(), self._start
        tokens = now.computed_prompt_tokens + now.generated_tokens
        tokens -= start.computed_prompt_tokens + start.generated_tokens
        return now.finished_requests - start.finished_requests, tokens
