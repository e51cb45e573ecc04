"""Workers that are a Dask cluster's: an engine on each, as long as it is there."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster

from engine.config import EngineConfig
from engine.errors import EngineLostError, UserError
from engine.machine.place import Place
from engine.model.checkpoint import EMBEDDED, ModelFiles, resolve_model
from tasks.dask_cluster.dask_child import DaskChild
from tasks.dask_cluster.known_workers import known_workers
from tasks.engine_process.engine_process import EngineProcess
from tasks.many_engines import ManyEngines, start_member
from tasks.workers import Worker

log = logging.getLogger(__name__)

# How often the scheduler is asked who is there.
LOOK_SECONDS = 2.0
SECONDS_TO_CONNECT, SECONDS_TO_JOIN = 20.0, 60.0


@dataclass(frozen=True, slots=True)
class AskedModel:
    """The model as the job names it and as it lies here; a worker's must have the same content."""

    path: str
    here: ModelFiles

    @property
    def there(self) -> str:
        """What a worker looks for: it may have another working directory."""
        return self.path if self.path == EMBEDDED else str(Path(self.path).expanduser().absolute())


class DaskWorkers(ManyEngines):
    """A member for each worker that the scheduler knows; those that join later become members when they are seen.

    `places` are those of a cluster of this machine's own. Elsewhere an engine has as many threads as its Dask worker,
    and the first GPU that it sees.
    """

    def __init__(self, client: Client, model: AskedModel, config: EngineConfig, places: Sequence[Place] = ()) -> None:
        self._client = client
        self._model = model
        self._config = config
        self._places = places
        self._by_address: dict[str, EngineProcess] = {}
        self._taken: dict[str, Place] = {}
        self._found: tuple[str, ...] = ()
        self._gone: set[str] = set()
        self._refused: set[str] = set()
        self._looked = 0.0
        if (refused := self._look()) is not None:
            raise refused
        if not self._by_address:
            raise UserError("runner: no Dask worker answers when it is asked for the model; its log may say why")
        super().__init__(list(self._by_address.values()))

    def each(self) -> Sequence[Worker]:
        """Where none is there, one is waited for: a nanny starts another in seconds."""
        deadline = time.monotonic() + SECONDS_TO_JOIN
        self._look_again()
        while not self._here() and not self.closed and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            self._look_again()
        return self._here()

    def _here(self) -> Sequence[Worker]:
        return tuple(self._by_address[address] for address in self._found if address not in self._gone)

    def _look_again(self) -> None:
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            before = len(self._by_address)
            if (refused := self._look()) is not None:
                log.warning("a Dask worker that joined is not asked for anything: %s", refused)
            self._members = list(self._by_address.values())
            for member in self._members[before:]:
                start_member(member)

    def _look(self) -> UserError | None:
        """Makes members of those who are new, but for who cannot have the model, or another: why the last of them."""
        found = known_workers(self._client)
        self._taken = {address: place for address, place in self._taken.items() if address in found}
        new = [address for address in found if address not in self._by_address and address not in self._refused]
        models = self._client.run(resolve_model, self._model.there, workers=new, on_error="return") if new else {}
        refused: UserError | None = None
        for address, model in models.items():
            if isinstance(model, ModelFiles) and model.fingerprint == self._model.here.fingerprint:
                self._by_address[address] = self._member(address, model, self._place(address, found[address]))
            elif not isinstance(model, OSError):  # else it went meanwhile, or is asked again
                self._refused.add(address)
                refused = UserError(f"{self._why_not(model)} (on {address})")
        self._found = tuple(address for address in found if address in self._by_address)
        self._looked = time.monotonic()
        return refused

    def _why_not(self, answer: object) -> str:
        if isinstance(answer, ModelFiles):
            return f"model.path: another model lies at {self._model.there}"
        if isinstance(answer, UserError):
            return str(answer)
        return f"runner: a Dask worker needs the run's environment: {type(answer).__name__}: {answer}"

    def _member(self, address: str, model: ModelFiles, place: Place) -> EngineProcess:
        start_child = partial(self._start_child, address)
        return EngineProcess(
            model, self._config, place=place, label=f"the Dask worker {address}", start_child=start_child
        )

    def _start_child(self, address: str) -> DaskChild:
        try:
            return DaskChild(self._client, address)
        except EngineLostError:
            self._gone.add(address)  # its scheduler may take a while to hear of it
            raise

    def _place(self, address: str, told: dict[str, Any]) -> Place:
        """One that nobody has: a worker that comes again has another address, and the place of the one that went."""
        free = [place for place in self._places if place not in self._taken.values()]
        place = free[0] if free else Place(threads=told["nthreads"])
        self._taken[address] = place
        return place


@contextmanager
def dask_workers(
    model: AskedModel, config: EngineConfig, scheduler: str | None, workers: int, places: Sequence[Place]
) -> Iterator[DaskWorkers]:
    """Those of the cluster at an address, once `workers` of them have joined, or of one that ends with the context.

    Raises UserError where nobody answers, no worker joins, or one has another model.
    """
    with ExitStack() as stack:
        if scheduler is None:
            cluster = LocalCluster(
                n_workers=len(places),
                threads_per_worker=1,
                memory_limit=0,
                dashboard_address=None,
                silence_logs=logging.ERROR,
            )
            stack.enter_context(cluster)
            client = stack.enter_context(Client(cluster))
        else:
            client = stack.enter_context(_connected(scheduler))
        least = len(places) if scheduler is None else max(1, workers)
        try:
            client.wait_for_workers(least, timeout=SECONDS_TO_JOIN)
        except TimeoutError:
            there = len(known_workers(client))
            raise UserError(
                f"runner: {there} of {least} Dask workers joined in {SECONDS_TO_JOIN:g} s; start more with "
                "`dask worker`, or ask for fewer with engine.workers"
            ) from None
        yield stack.enter_context(DaskWorkers(client, model, config, places if scheduler is None else ()))


def _connected(scheduler: str) -> Client:
    try:
        return Client(scheduler, timeout=SECONDS_TO_CONNECT)
    except (OSError, ValueError) as problem:
        raise UserError(f"dask_scheduler: nobody answers at {scheduler} ({problem})") from problem
