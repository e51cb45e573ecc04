"""Workers that are a cluster's: an engine on each, as long as it is there."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from functools import partial
from threading import Thread
from typing import Generic

from engine.config import EngineConfig
from engine.errors import EngineLostError, UserError
from engine.machine.place import Place
from engine.model.checkpoint import ModelFiles
from tasks.cluster.asked_model import AskedModel
from tasks.cluster.cluster import Asked, Cluster, Seen
from tasks.engine_process.engine_child import EngineChild
from tasks.engine_process.engine_process import EngineProcess
from tasks.many_engines import ManyEngines, start_member
from tasks.workers import Worker

log = logging.getLogger(__name__)

# How often the cluster is asked who is there, and how often it is looked whether somebody has told.
LOOK_SECONDS, ANSWER_SECONDS = 2.0, 0.1
SECONDS_TO_JOIN = 60.0
# A worker reads all of the model before it answers: 100 GB take minutes.
SECONDS_TO_TELL = 600.0
# For the others, once one has told: its answer may wait behind somebody else's tasks on a worker.
SECONDS_TO_FOLLOW = 5.0


class ClusterWorkers(ManyEngines, Generic[Seen]):
    """A member for each worker that the cluster knows; those that join later become members when they have told what
    model they have, for which nobody waits.

    `places` are those of a cluster of this machine's own; elsewhere an engine is where the cluster says.
    """

    def __init__(
        self, cluster: Cluster[Seen], model: AskedModel, config: EngineConfig, places: Sequence[Place] = ()
    ) -> None:
        """Raises UserError where nobody has the model."""
        self._cluster = cluster
        self._model = model
        self._config = config
        self._places = places
        self._engines: dict[Seen, EngineProcess] = {}
        self._asked: dict[Seen, Asked] = {}
        self._taken: dict[Seen, Place] = {}
        self._found: tuple[Seen, ...] = ()
        self._models: dict[Seen, ModelFiles] = {}
        self._lost: set[EngineProcess] = set()
        self._refused: set[Seen] = set()
        self._looked = self._met = time.monotonic()
        self._look_first()
        super().__init__(list(self._engines.values()))

    def each(self) -> Sequence[Worker]:
        """Where none is there, one is waited for: who went may come again in seconds."""
        deadline = time.monotonic() + SECONDS_TO_JOIN
        self._look_again()
        while not self._here() and not self.closed and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            self._look_again()
        return self._here()

    def _here(self) -> Sequence[Worker]:
        there = [self._engines[seen] for seen in self._found]
        return tuple(engine for engine in there if engine not in self._lost)

    def _look_first(self) -> None:
        """Waits for one to tell of the model, and shortly for others. Raises UserError for a refusal, or for none."""
        refused = self._hear(SECONDS_TO_TELL, of_one=True)
        if refused is None and self._engines:
            refused = self._hear(SECONDS_TO_FOLLOW)
        if refused is not None:
            raise refused
        if not self._engines:
            kind = self._cluster.kind
            raise UserError(f"runner: no {kind} answers when it is asked for the model; its log may say why")

    def _hear(self, seconds: float, *, of_one: bool = False) -> UserError | None:
        """Looks until all who are asked have told, or one has, or one refuses: why. Where nobody is there they may
        have gone, for whom nobody waits longer than for those who come.
        """
        deadline = time.monotonic() + seconds
        refused = self._look()
        while refused is None and self._asked and not (of_one and self._engines):
            if time.monotonic() > min(deadline, self._met + SECONDS_TO_JOIN):
                break
            self._wait_for_answers()
            refused = self._look()
        return refused

    def _wait_for_answers(self) -> None:
        """Until somebody has told, but for `LOOK_SECONDS` at most: who is asked may go."""
        deadline = time.monotonic() + LOOK_SECONDS
        time.sleep(ANSWER_SECONDS)  # who has told is not heard while the cluster does not answer
        while not any(asked.done() for asked in self._asked.values()) and time.monotonic() < deadline:
            time.sleep(ANSWER_SECONDS)

    def _look_again(self) -> None:
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            if (refused := self._look()) is not None:
                log.warning("a %s that joined is not asked for anything: %s", self._cluster.kind, refused)
            before = {*self._members}
            joined = [engine for engine in self._engines.values() if engine not in before]
            self._members += joined
            for member in joined:
                # What it logs is the flow run's; it may take a minute to begin.
                begin = partial(copy_context().run, start_member, member)
                Thread(target=begin, name="trunkline-far-start", daemon=True).start()

    def _look(self) -> UserError | None:
        """Asks those who are new for the model, and makes members of those who have told that they have it: why the
        last of the others has not.
        """
        found = self._cluster.known()
        if not found:  # it may be that the cluster does not answer: those who are asked may tell yet
            self._found, self._looked = (), time.monotonic()
            return None
        self._met = time.monotonic()
        self._taken = {seen: place for seen, place in self._taken.items() if seen in found}
        self._begin_again(found)
        known = self._engines.keys() | self._asked.keys() | self._refused
        self._asked |= {seen: self._cluster.ask(seen, self._model.there) for seen in found if seen not in known}
        refused: UserError | None = None
        for seen, asked in list(self._asked.items()):
            if seen not in found:
                self._asked.pop(seen).cancel()
            elif asked.done():
                del self._asked[seen]
                try:
                    self._hear_from(seen, asked, found)
                except UserError as problem:
                    asked.cancel()
                    self._refused.add(seen)
                    refused = problem
        self._found = tuple(seen for seen in found if seen in self._engines)
        self._looked = time.monotonic()
        return refused

    def _begin_again(self, found: Mapping[Seen, Place]) -> None:
        """Who was taken for gone, and is there, has another engine: the cluster had not answered once."""
        for seen, there in found.items():
            if self._engines.get(seen) in self._lost:
                self._engines[seen] = self._member(seen, self._models[seen], self._place(seen, there))

    def _hear_from(self, seen: Seen, asked: Asked, found: Mapping[Seen, Place]) -> None:
        """Raises UserError for a worker that is not to be asked again."""
        if (told := asked.told()) is not None:
            model = self._models[seen] = self._model.read(told, self._cluster.address(seen))
            self._engines[seen] = self._member(seen, model, self._place(seen, found[seen]))

    def _member(self, seen: Seen, model: ModelFiles, place: Place) -> EngineProcess:
        def start_child() -> EngineChild:
            return self._start_child(seen, member)

        label = self._name(seen)
        member = EngineProcess(model, self._config, place=place, label=label, start_child=start_child)
        return member

    def _start_child(self, seen: Seen, member: EngineProcess) -> EngineChild:
        """Raises EngineLostError for good: a run gives this member nothing more."""
        try:
            if member in self._lost or seen not in self._cluster.known():
                raise EngineLostError(f"{self._name(seen)} starts no engine: it is gone")
            return self._cluster.start_child(seen)
        except EngineLostError:
            self._lost.add(member)
            raise

    def _name(self, seen: Seen) -> str:
        return f"the {self._cluster.kind} {self._cluster.address(seen)}"

    def _place(self, seen: Seen, there: Place) -> Place:
        """Its own, or one that nobody has: a worker that comes again has the place of the one that went."""
        if seen in self._taken:
            return self._taken[seen]
        free = [place for place in self._places if place not in self._taken.values()]
        self._taken[seen] = free[0] if free else there
        return self._taken[seen]


def wait_for_workers(cluster: Cluster[Seen], least: int) -> None:
    """Raises UserError where fewer join in `SECONDS_TO_JOIN`."""
    deadline = time.monotonic() + SECONDS_TO_JOIN
    while (there := len(cluster.known())) < least:
        if time.monotonic() > deadline:
            raise UserError(
                f"runner: {there} of {least} {cluster.kind}s joined in {SECONDS_TO_JOIN:g} s; {cluster.cure}, "
                "or ask for fewer with engine.workers"
            )
        time.sleep(ANSWER_SECONDS)
