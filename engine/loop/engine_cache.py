"""Engines loaded in this process, each once.

It lives in a module of its own, because task functions travel by value: a cache beside them would be a fresh copy in
every worker.
"""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config import EngineConfig
from engine.loop.trace import TraceWriter
from engine.machine.device import resolve_device
from engine.machine.device_turn import turn_of
from engine.model.checkpoint import ModelFiles

if TYPE_CHECKING:
    from engine.loop.engine import Engine

_engines: dict[tuple[str, EngineConfig], "Engine"] = {}
_lock = threading.Lock()
_trace: TraceWriter | None = None


def get_engine(model: ModelFiles, config: EngineConfig) -> "Engine":
    """The process's engine for this model and these limits, loaded if there is none that lives.

    Waits for the device's turn. Raises UserError for a model that cannot be served, and EngineClosedError where
    `close_engines` was called meanwhile.
    """
    from engine.loop.build import start_engine  # torch and transformers load here, not with this module

    with _lock:
        engine = _engines.get((model.fingerprint, config))
        if engine is None or engine.dead:
            turn = turn_of(resolve_device(config))
            engine = _engines[model.fingerprint, config] = start_engine(model, config, on_step=_trace, turn=turn)
    engine.wait_until_loaded()
    return engine


def trace_steps(path: Path | None) -> None:
    """Every engine that this process loads from now on writes a line a step into `path`; None ends that.

    Raises UserError where the file cannot be written.
    """
    global _trace
    with _lock:
        _trace = None if path is None else TraceWriter(path)


def close_engines() -> None:
    """Ends every engine and frees its memory."""
    with _lock:
        for engine in _engines.values():
            engine.close()
        _engines.clear()
