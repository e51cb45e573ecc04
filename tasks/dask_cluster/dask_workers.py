"""Workers that are a Dask cluster's."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import dask
from distributed import Client, Future, LocalCluster
from distributed.scheduler import KilledWorker

from engine.config import EngineConfig
from engine.errors import UserError
from engine.machine.place import Place
from tasks.cluster.asked_model import AskedModel, tell_model
from tasks.cluster.cluster import Asked
from tasks.cluster.cluster_workers import ClusterWorkers, wait_for_workers
from tasks.dask_cluster.dask_child import DaskChild
from tasks.dask_cluster.known_workers import known_workers

SECONDS_TO_CONNECT = 20.0
# To fetch an answer that is there.
SECONDS_TO_FETCH = 10.0
# Of a cluster of the run's own, which has no dashboard to show what Dask samples of its processes (every 1 to 500 ms),
# and no tasks to steal: with two workers that took 8.5 % of a core from the engines, and so it takes 1.
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.scheduler.work-stealing": False,
}
# Its nannies start another worker where one ends. Dask takes the nanny away too where 15 s behind the end no worker is
# there: one that starts slowly, or whose successor ended just then. Read in this process, when a worker is lost.
LASTING = {"distributed.deploy.lost-worker-timeout": "1000 days"}


class DaskWorker(NamedTuple):
    """Its address, and its own folder: who starts again at the address of one that ended is another."""

    address: str
    folder: str


class DaskAnswer:
    """What a task on a worker tells of the model."""

    def __init__(self, future: "Future[bytes]", address: str) -> None:
        self._future = future
        self._address = address

    def done(self) -> bool:
        return bool(self._future.done())

    def cancel(self) -> None:
        self._future.cancel()

    def told(self) -> bytes | None:
        if self._future.status == "error":
            problem = self._future.exception(timeout=SECONDS_TO_FETCH)
            if isinstance(problem, KilledWorker):
                return None
            words = f"{type(problem).__name__}: {problem}"
            raise UserError(f"runner: a Dask worker needs the run's environment: {words} (on {self._address})")
        if self._future.status != "finished":
            return None
        try:
            told: bytes = self._future.result(timeout=SECONDS_TO_FETCH)
        except Exception:  # Dask has several for a worker that is gone
            return None
        return told


class DaskCluster:
    """Who the scheduler knows. An engine has as many threads as its Dask worker, and the first GPU that it sees."""

    kind = "Dask worker"
    cure = "start more with `dask worker`"

    def __init__(self, client: Client) -> None:
        self._client = client

    def known(self) -> Mapping[DaskWorker, Place]:
        found = known_workers(self._client)
        return {
            DaskWorker(address, told["local_directory"]): Place(threads=told["nthreads"])
            for address, told in found.items()
        }

    def address(self, seen: DaskWorker) -> str:
        return seen.address

    def ask(self, seen: DaskWorker, path: str) -> Asked:
        future = self._client.submit(tell_model, path, workers=[seen.address], allow_other_workers=False, pure=False)
        return DaskAnswer(future, seen.address)

    def start_child(self, seen: DaskWorker) -> DaskChild:
        return DaskChild(self._client, seen.address)


@contextmanager
def dask_workers(
    model: AskedModel, config: EngineConfig, scheduler: str | None, workers: int, places: Sequence[Place]
) -> Iterator[ClusterWorkers[DaskWorker]]:
    """Those of the cluster at an address, once `workers` of them have joined, or of one that ends with the context.

    Raises UserError where nobody answers, no worker joins, or one has another model.
    """
    with ExitStack() as stack:
        if scheduler is None:
            stack.enter_context(dask.config.set(LASTING))
            with dask.config.set(QUIET):  # for the scheduler, which is here
                local = LocalCluster(
                    n_workers=len(places),
                    threads_per_worker=1,
                    memory_limit=0,
                    dashboard_address=None,
                    silence_logs=logging.ERROR,
                    config=QUIET,  # for each worker, and for one that comes in its place
                )
            stack.enter_context(local)
            client = stack.enter_context(Client(local))
        else:
            client = stack.enter_context(_connected(scheduler))
        cluster = DaskCluster(client)
        wait_for_workers(cluster, len(places) if scheduler is None else max(1, workers))
        yield stack.enter_context(ClusterWorkers(cluster, model, config, places if scheduler is None else ()))


def _connected(scheduler: str) -> Client:
    try:
        return Client(scheduler, timeout=SECONDS_TO_CONNECT)
    except (OSError, ValueError) as problem:
        raise UserError(f"dask_scheduler: nobody answers at {scheduler} ({problem})") from problem
