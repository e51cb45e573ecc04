"""Where a run gets its workers: an engine of its own, unless whoever calls the flow says otherwise."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path

from engine.config import EngineConfig
from engine.loop.trace import TraceWriter
from tasks.in_process import InProcess
from tasks.storage.run import Run
from tasks.workers import Workers

OpenWorkers = Callable[[Run], AbstractContextManager[Workers]]


def in_process(run: Run) -> AbstractContextManager[Workers]:
    """An engine for this run alone; the model is freed at its end."""
    return InProcess(run.model, run.config)


# Not a parameter of the flow: those are what a deployment's form shows.
_open_workers: ContextVar[OpenWorkers] = ContextVar("open_workers", default=in_process)


def open_workers(run: Run) -> AbstractContextManager[Workers]:
    return _open_workers.get()(run)


@contextmanager
def workers_from(opened: OpenWorkers) -> Iterator[None]:
    """Runs that are called within the context, and in its thread, get their workers from `opened`."""
    token = _open_workers.set(opened)
    try:
        yield
    finally:
        _open_workers.reset(token)


def traced(path: Path) -> OpenWorkers:
    """An engine for each run that writes a line a step. Raises UserError where the file cannot be written."""
    writer = TraceWriter(path)
    return lambda run: InProcess(run.model, run.config, on_step=writer)


@contextmanager
def kept_engines() -> Iterator[None]:
    """Runs that are called within the context, and in its thread, share an engine for each model and its limits.

    A model is loaded by the first run that needs it, and freed when the context ends, or by a run that fails.
    """
    kept: dict[tuple[str, EngineConfig], InProcess] = {}

    @contextmanager
    def lend(run: Run) -> Iterator[Workers]:
        key = run.model.fingerprint, run.config
        if key not in kept or kept[key].closed:
            kept[key] = InProcess(run.model, run.config)
        try:
            yield kept[key]
        except BaseException:
            kept[key].close()
            raise

    try:
        with workers_from(lend):
            yield
    finally:
        for workers in kept.values():
            workers.close()
