"""Where a run gets its workers: an engine of its own, unless whoever calls the flow says otherwise."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from engine.config import Dtype, EngineConfig
from engine.errors import UserError
from engine.loop.trace import TraceWriter
from engine.machine.place import Place, places
from engine.process.child import Child
from tasks.cluster.asked_model import AskedModel
from tasks.engine_process.engine_process import EngineProcess, own_child
from tasks.in_process import InProcess
from tasks.late_workers import LateWorkers
from tasks.many_engines import ManyEngines
from tasks.storage.run import Run
from tasks.workers import Workers

OpenWorkers = Callable[[Run], AbstractContextManager[Workers]]
# Model, limits, address, how many workers to begin with, and the places of a cluster of this machine's own.
OpenCluster = Callable[[AskedModel, EngineConfig, str | None, int, Sequence[Place]], AbstractContextManager[Workers]]

Opened = EngineProcess | ManyEngines


def own_processes(run: Run, trace: Path | None = None, child: Child | None = None) -> Opened:
    """Engines for this run alone, in processes that end with it: what ends an engine does not end the run.

    One for each place that the job gives it. The first may have begun as `child`; each writes a trace of its own.
    """
    found = places(run.config, run.job.engine.workers)
    traces = [
        trace and (trace if number == 0 else trace.with_stem(f"{trace.stem}-{number + 1}"))
        for number in range(len(found))
    ]
    members = [
        EngineProcess(
            run.model,
            run.config,
            trace=traces[number],
            place=place,
            label=f"worker {number + 1} of {len(found)} ({place})" if len(found) > 1 else "the engine",
            child=child if number == 0 else None,
        )
        for number, place in enumerate(found)
    ]
    return ManyEngines(members) if len(members) > 1 else members[0]


def cluster_workers(run: Run) -> AbstractContextManager[Workers]:
    """Engines on the workers of the job's cluster, which is looked for once there is something to compute.

    Raises UserError where its library is not installed.
    """
    job = run.job
    opened = _opened(job.runner)
    # Answers are named by how they are computed here: there it is to be the same, or a line that says why not.
    device = "cpu" if run.device.name == "cpu" else "cuda"
    config = replace(run.config, device=device, dtype=cast(Dtype, run.device.dtype))
    own = places(run.config, job.engine.workers) if job.cluster is None else ()
    model = AskedModel(job.model.path, run.model)
    return LateWorkers(partial(opened, model, config, job.cluster, job.engine.workers, own))


def _opened(runner: str) -> OpenCluster:
    """Its library is an extra, and takes half a second to import."""
    try:
        if runner == "ray":
            from tasks.ray_cluster.ray_workers import ray_workers

            return ray_workers
        from tasks.dask_cluster.dask_workers import dask_workers

        return dask_workers
    except ModuleNotFoundError as problem:
        raise UserError(f"runner: {runner} needs trunkline[{runner}], which is not installed ({problem})") from None


def own_workers(run: Run, trace: Path | None = None, child: Child | None = None) -> AbstractContextManager[Workers]:
    """Those that the job's `runner` says, for this run alone."""
    if run.job.runner == "local":
        return own_processes(run, trace, child)
    if trace is not None:
        raise UserError("--trace: is for runner: local alone")
    if child is not None:
        child.end(at_once=True)  # the cluster has others
    return cluster_workers(run)


def in_process(run: Run) -> AbstractContextManager[Workers]:
    """An engine for this run alone, in this process: it starts in less time where torch is loaded already."""
    return InProcess(run.model, run.config)


# Not a parameter of the flow: those are what a deployment's form shows.
_open_workers: ContextVar[OpenWorkers] = ContextVar("open_workers", default=own_workers)


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


@contextmanager
def begun_process(trace: Path | None) -> Iterator[None]:
    """The run that is called within the context has an engine whose process begins its imports now.

    The file `trace` gets a line a step. Raises UserError where it cannot be written.
    """
    if trace is not None:
        TraceWriter(trace).close()
    child = own_child()
    try:
        with workers_from(lambda run: own_workers(run, trace and trace.absolute(), child)):
            yield
    finally:
        child.end(at_once=True)  # it is still there where the run did not come so far


@contextmanager
def kept_engines() -> Iterator[None]:
    """Runs that are called within the context, and in its thread, share engines for each model, its limits and workers.

    A model is loaded by the first run that needs it, and freed when the context ends, or by a run that fails. Those of
    a cluster are each run's own.
    """
    kept: dict[tuple[str, EngineConfig, int], Opened] = {}

    @contextmanager
    def lend(run: Run) -> Iterator[Workers]:
        if run.job.runner != "local":
            with own_workers(run) as workers:
                yield workers
            return
        key = run.model.fingerprint, run.config, run.job.engine.workers
        if key not in kept or kept[key].closed:
            kept[key] = own_processes(run)
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
