"""Workers that are a Dask cluster's: an engine on each, as long as it is there."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from functools import partial
from threading import Thread
from typing import Any

from distributed import Client, Future, LocalCluster, wait

from engine.config import EngineConfig
from engine.errors import EngineLostError, UserError
from engine.machine.place import Place
from engine.model.checkpoint import ModelFiles
from tasks.dask_cluster.asked_model import AskedModel
from tasks.dask_cluster.dask_child import DaskChild
from tasks.dask_cluster.known_workers import known_workers
from tasks.engine_process.engine_process import EngineProcess
from tasks.many_engines import ManyEngines, start_member
from tasks.workers import Worker

log = logging.getLogger(__name__)

# How often the scheduler is asked who is there.
LOOK_SECONDS = 2.0
SECONDS_TO_CONNECT, SECONDS_TO_JOIN = 20.0, 60.0
# A worker reads all of the model before it answers: 100 GB take minutes.
SECONDS_TO_TELL = 600.0
# For the others, once one has told: its answer may wait behind somebody else's tasks on a worker.
SECONDS_TO_FOLLOW = 5.0


# A worker's address, and its own folder: who starts again at the address of one that ended is another.
Seen = tuple[str, str]


class DaskWorkers(ManyEngines):
    """A member for each worker that the scheduler knows; those that join later become members when they have told what
    model they have, for which nobody waits.

    `places` are those of a cluster of this machine's own. Elsewhere an engine has as many threads as its Dask worker,
    and the first GPU that it sees.
    """

    def __init__(self, client: Client, model: AskedModel, config: EngineConfig, places: Sequence[Place] = ()) -> None:
        self._client = client
        self._model = model
        self._config = config
        self._places = places
        self._engines: dict[Seen, EngineProcess] = {}
        self._asked: dict[Seen, Future[ModelFiles]] = {}
        self._taken: dict[Seen, Place] = {}
        self._found: tuple[Seen, ...] = ()
        self._gone: set[Seen] = set()
        self._refused: set[Seen] = set()
        self._looked = 0.0
        self._look_first()
        super().__init__(list(self._engines.values()))

    def each(self) -> Sequence[Worker]:
        """Where none is there, one is waited for: a nanny starts another in seconds."""
        deadline = time.monotonic() + SECONDS_TO_JOIN
        self._look_again()
        while not self._here() and not self.closed and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            self._look_again()
        return self._here()

    def _here(self) -> Sequence[Worker]:
        return tuple(self._engines[seen] for seen in self._found if seen not in self._gone)

    def _look_first(self) -> None:
        """Waits for one to tell of the model, and shortly for others. Raises UserError for a refusal, or for none."""
        refused = self._hear(SECONDS_TO_TELL, of_one=True)
        if refused is None and self._engines:
            refused = self._hear(SECONDS_TO_FOLLOW)
        if refused is not None:
            raise refused
        if not self._engines:
            raise UserError("runner: no Dask worker answers when it is asked for the model; its log may say why")

    def _hear(self, seconds: float, *, of_one: bool = False) -> UserError | None:
        """Looks until all who are asked have told, or one has, or one refuses: why."""
        deadline = time.monotonic() + seconds
        refused = self._look()
        while refused is None and self._asked and not (of_one and self._engines) and time.monotonic() < deadline:
            with suppress(TimeoutError):
                wait(list(self._asked.values()), timeout=LOOK_SECONDS)
            refused = self._look()
        return refused

    def _look_again(self) -> None:
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            before = len(self._engines)
            if (refused := self._look()) is not None:
                log.warning("a Dask worker that joined is not asked for anything: %s", refused)
            self._members = list(self._engines.values())
            for member in self._members[before:]:
                # What it logs is the flow run's; it may take a minute to begin.
                begin = partial(copy_context().run, start_member, member)
                Thread(target=begin, name="trunkline-dask-start", daemon=True).start()

    def _look(self) -> UserError | None:
        """Asks those who are new for the model, and makes members of those who have told that they have it: why the
        last of the others has not.
        """
        found = self._known()
        self._taken = {seen: place for seen, place in self._taken.items() if seen in found}
        known = self._engines.keys() | self._asked.keys() | self._refused
        self._asked |= {seen: self._model.ask(self._client, seen[0]) for seen in found if seen not in known}
        refused: UserError | None = None
        for seen, told in list(self._asked.items()):
            if seen not in found:
                self._asked.pop(seen).cancel()
            elif told.done():
                del self._asked[seen]
                try:
                    if (model := self._model.answer(told, seen[0])) is not None:
                        self._engines[seen] = self._member(seen, model, self._place(seen, found[seen]))
                except UserError as problem:
                    self._refused.add(seen)
                    refused = problem
        self._found = tuple(seen for seen in found if seen in self._engines)
        self._looked = time.monotonic()
        return refused

    def _known(self) -> dict[Seen, dict[str, Any]]:
        return {(address, told["local_directory"]): told for address, told in known_workers(self._client).items()}

    def _member(self, seen: Seen, model: ModelFiles, place: Place) -> EngineProcess:
        start_child = partial(self._start_child, seen)
        return EngineProcess(
            model, self._config, place=place, label=f"the Dask worker {seen[0]}", start_child=start_child
        )

    def _start_child(self, seen: Seen) -> DaskChild:
        try:
            if seen not in self._known():
                raise EngineLostError(f"the Dask worker {seen[0]} starts no engine: it is gone")
            return DaskChild(self._client, seen[0])
        except EngineLostError:
            self._gone.add(seen)  # its scheduler may take a while to hear of it
            raise

    def _place(self, seen: Seen, told: dict[str, Any]) -> Place:
        """One that nobody has: a worker that comes again has the place of the one that went."""
        free = [place for place in self._places if place not in self._taken.values()]
        place = free[0] if free else Place(threads=told["nthreads"])
        self._taken[seen] = place
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
