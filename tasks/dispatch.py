"""Which worker has which shards of a run, now and next; and whose they are when it is lost."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from engine.plan import Shard
from tasks.answers_seen import AnswersSeen
from tasks.error_limit import ErrorLimit
from tasks.infer import Heeds
from tasks.routes import Routes
from tasks.run_commits import RunCommits
from tasks.shard_gate import ShardGate
from tasks.workers import Worker, Workers

log = logging.getLogger(__name__)

# Of a worker: one shard's decode tail overlaps the prefill of the next; a third keeps it fed while one commits.
SHARDS_IN_FLIGHT = 3
# A shard with which more workers were lost than this is not given to another: it may be why.
MOST_MOVES = 2


@dataclass(frozen=True, slots=True)
class Turn:
    """A shard that a worker has."""

    shard: Shard
    worker: Worker
    heeds: Heeds


class Dispatch:
    """Deals a plan's shards to the run's workers, whoever of them is there. One thread asks it."""

    def __init__(
        self,
        shards: Sequence[Shard],
        workers: Workers,
        errors: ErrorLimit,
        max_engine_deaths: int,
        answers: AnswersSeen | None = None,
    ) -> None:
        self.commits = RunCommits()
        self._answers = answers or AnswersSeen()
        self._workers = workers
        self._errors = errors
        self._max_deaths = max_engine_deaths
        self._routes: Routes[Worker] = Routes(shards, workers.each())
        self._gates: dict[Worker, ShardGate] = {}
        self._in_flight: Counter[Worker] = Counter()
        self._lost: set[Worker] = set()
        self._moves: Counter[int] = Counter()

    @property
    def left(self) -> int:
        """Shards that no worker has, or had."""
        return len(self._routes)

    def next(self) -> Turn | None:
        """For the worker that has the least to do; None where all shards are taken, or all workers have enough."""
        worker = min(self._living(), key=self._in_flight.__getitem__, default=None)
        if worker is None or self._in_flight[worker] >= SHARDS_IN_FLIGHT:
            return None
        shard = self._routes.take(worker)
        if shard is None:
            return None
        self._in_flight[worker] += 1
        gate = self._gates.setdefault(worker, ShardGate(self._max_deaths))
        suspected = self._moves[shard.index] > 0
        return Turn(shard, worker, Heeds(gate, self.commits, self._errors, self._answers, suspected))

    def ended(self, turn: Turn) -> None:
        """However it ended."""
        self._in_flight[turn.worker] -= 1

    def move(self, turn: Turn, problem: Exception) -> bool:
        """Gives the shard to another worker, and none to this one any more; False where it is to be nobody's."""
        self._lost.add(turn.worker)
        self._moves[turn.shard.index] += 1
        if not self._living() or self._moves[turn.shard.index] > MOST_MOVES:
            return False
        log.warning("%s is lost, others do what it had: %s", turn.worker.label, problem)
        self._routes.give_back(turn.shard)
        return True

    def _living(self) -> list[Worker]:
        return [worker for worker in self._workers.each() if worker not in self._lost]
