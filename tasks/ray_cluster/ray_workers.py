"""Workers that are a Ray cluster's devices."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from threading import Lock
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from engine.config import EngineConfig
from engine.errors import EngineLostError, UserError
from engine.machine.place import Place
from tasks.cluster.asked_model import AskedModel
from tasks.cluster.cluster import Asked
from tasks.cluster.cluster_workers import ClusterWorkers, wait_for_workers
from tasks.ray_cluster.device_actor import DeviceActor
from tasks.ray_cluster.ray_child import RayChild
from tasks.ray_cluster.ray_session import AUTO, has_joined, joined_ray, own_ray
from tasks.ray_cluster.shares import Share, shares


class RayWorker(NamedTuple):
    """A node's share, and how many actors ended that had it: the next one that has it is another worker."""

    node: str
    number: int
    ended: int


class RayAnswer:
    """What a worker's actor tells of the model, once Ray found room for it."""

    def __init__(self, cluster: "RayCluster", seen: RayWorker, future: "Future[bytes]") -> None:
        self._cluster = cluster
        self._seen = seen
        self._future = future

    def done(self) -> bool:
        return self._future.done()

    def cancel(self) -> None:
        self._cluster.end(self._seen)

    def told(self) -> bytes | None:
        try:
            return self._future.result()
        except Exception as problem:  # Ray has several for an actor that is gone
            failed_to_begin = isinstance(problem, RayActorError) and problem.actor_init_failed
            if failed_to_begin or isinstance(problem, (RayTaskError, ImportError, AttributeError)):
                words, address = " ".join(str(problem).split()), self._cluster.address(self._seen)
                raise UserError(
                    f"runner: a Ray worker needs the run's environment: {words} (on {address})"
                ) from problem
            self._cluster.let_go(self._seen)
            return None


class RayCluster:
    """An actor for each device of the nodes that are there: one on a GPU, or on the CPUs of a node without. It keeps
    the device for the run; where that is somebody else's now, it begins when it is free.
    """

    kind = "Ray worker"

    def __init__(self, config: EngineConfig, cpus_each: int = 0) -> None:
        self.cure = (
            f"start more nodes{' with GPUs' if config.device != 'cpu' else ''} (`ray start --address=HOST:PORT`)"
        )
        self._config = config
        self._cpus_each = cpus_each
        self._ended: Counter[tuple[str, int]] = Counter()
        self._actors: dict[RayWorker, Any] = {}
        self._shares: dict[RayWorker, Share] = {}
        self._addresses: dict[str, str] = {}
        self._lock = Lock()

    def known(self) -> Mapping[RayWorker, Place]:
        there: list[dict[str, Any]] = []
        with suppress(Exception):  # of the client, whose server is away
            there = [node for node in ray.nodes() if node["Alive"]]
        with self._lock:
            self._addresses |= {node["NodeID"]: node["NodeManagerAddress"] for node in there}
            found = {
                RayWorker(node["NodeID"], number, self._ended[node["NodeID"], number]): share
                for node in there
                for number, share in enumerate(shares(node["Resources"], self._config, cpus_each=self._cpus_each))
            }
            self._shares |= found
        return {seen: Place(threads=share.threads) for seen, share in found.items()}

    def address(self, seen: RayWorker) -> str:
        return f"{self._addresses[seen.node]}#{seen.number + 1}"

    def ask(self, seen: RayWorker, path: str) -> Asked:
        share = self._shares[seen]
        options = {
            "num_cpus": share.cpus,
            "num_gpus": share.gpus,
            "max_restarts": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(seen.node, soft=False),
        }
        try:
            actor = ray.remote(DeviceActor).options(**options).remote()
            told = actor.tell.remote(path).future()
        except Exception as problem:  # Ray's client asks its server first, which needs the run's environment too
            told = Future()
            told.set_exception(problem)
            return RayAnswer(self, seen, told)
        with self._lock:
            self._actors[seen] = actor
        return RayAnswer(self, seen, told)

    def start_child(self, seen: RayWorker) -> RayChild:
        try:
            actor = self._actors.get(seen)
            if actor is None:
                raise EngineLostError(f"the {self.kind} {self.address(seen)} starts no engine: it is gone")
            return RayChild(actor, self.address(seen))
        except EngineLostError:
            self.let_go(seen)
            raise

    def let_go(self, seen: RayWorker) -> None:
        """Its actor ended, or does not answer: another has its share."""
        if self.end(seen):
            with self._lock:
                self._ended[seen.node, seen.number] += 1

    def end(self, seen: RayWorker) -> bool:
        """Ends its actor, and gives its device back; whether there was one."""
        with self._lock:
            actor = self._actors.pop(seen, None)
        if actor is not None:
            with suppress(Exception):  # it may have ended long ago, and its cluster with it
                ray.kill(actor)
        return actor is not None

    def close(self) -> None:
        for seen in list(self._actors):
            self.end(seen)


@contextmanager
def ray_workers(
    model: AskedModel, config: EngineConfig, address: str | None, workers: int, places: Sequence[Place]
) -> Iterator[ClusterWorkers[RayWorker]]:
    """Those of the cluster at an address, once there are `workers`, or of one that ends with the context.

    Raises UserError where nobody answers, there is no device, or one has another model.
    """
    with ExitStack() as stack:
        is_own = address is None and not has_joined()
        if is_own:
            gpus = 0 if config.device == "cpu" else len(places) * config.tensor_parallel
            stack.enter_context(own_ray(len(places), gpus))
        else:
            stack.enter_context(joined_ray(address or AUTO))
        cluster = RayCluster(config, cpus_each=1 if is_own else 0)
        stack.callback(cluster.close)
        wait_for_workers(cluster, len(places) if is_own else max(1, workers))
        yield stack.enter_context(ClusterWorkers(cluster, model, config, places if is_own else ()))
