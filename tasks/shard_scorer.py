"""Asks the engine for a shard's rows, commits what ends meanwhile, and finds the rows that kill the engine."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue

from engine.errors import EngineDeadError
from engine.plan import ShardWork
from engine.request import RequestOutput
from tasks.answers_seen import AnswersSeen
from tasks.error_limit import ErrorLimit
from tasks.run_failed import EngineKeepsDyingError, RunFailedError
from tasks.shard_gate import ShardGate
from tasks.shard_results import ShardResults
from tasks.source.row_error import ENGINE_CRASH
from tasks.suspects import Suspects
from tasks.transient import is_transient
from tasks.workers import OnOutput, Worker

log = logging.getLogger(__name__)

# A row that killed the engine once may have been there when the system ran out of memory; twice and alone is its own.
LONE_TRIES = 2
# A load that fails three times in a row will fail again.
START_TRIES = 3
# Of how the engine died, in a row's error: the rest is in the run's log.
_MOST_CHARACTERS = 200


class ShardScorer:
    """Gets a shard's rows to their ends, in the shard's own thread, which has nothing else to do while it waits.

    The engine's thread only puts outputs into a queue. What has ended is committed every `checkpoint_seconds` off that
    thread, lazily, while the engine computes on, as DataStates-LLM does with checkpoints of a training (Maurya et al.,
    HPDC 2024).
    """

    def __init__(
        self,
        results: ShardResults,
        worker: Worker,
        gate: ShardGate,
        errors: ErrorLimit,
        answers: AnswersSeen,
        checkpoint_seconds: float,
    ) -> None:
        self._results = results
        self._worker = worker
        self._gate = gate
        self._errors = errors
        self._answers = answers
        self._checkpoint_seconds = checkpoint_seconds

    def score(self, *, suspected: bool = False) -> None:
        """Every row has ended, each as a result or as an error; where it is `suspected`, with no other shard beside it.

        Raises EngineLostError where the worker is lost, and RunFailedError: EngineKeepsDyingError where rows are not
        what kills the engine, ErrorRowError and TooManyErrorsError for errors that the job does not allow. What has
        ended is committed then.
        """
        if not suspected:
            with self._gate.beside():
                death = self._ask(self._results.left)
            if death is None:
                return
            log.warning("%s; its rows are asked again, and no others beside them", death)
        with self._gate.alone():
            self._score_alone()

    def _score_alone(self) -> None:
        suspects = Suspects(self._results.left, LONE_TRIES)
        how: dict[int, str] = {}
        while (rows := suspects.next()) is not None:
            death = self._ask(rows)
            if death is None:
                suspects.ended()
            else:
                left = [row for row in self._results.left if row in {*rows}]
                how |= dict.fromkeys(left, _words(death))
                suspects.died(left)
                self._gate.died(death)
            if self._gate.deaths == 0:
                self._convict(suspects, how)
        self._convict(suspects, how)

    def _convict(self, suspects: Suspects, how: dict[int, str]) -> None:
        """Rows that killed the engine are errors, once it has computed another since: it is not the engine."""
        for row in {*suspects.killers} & {*self._results.left}:
            message = f"the engine died {LONE_TRIES} times while it computed this row alone; {how[row]}"
            self._results.fail(row, ENGINE_CRASH, message)
            self._count(row)

    def _ask(self, rows: Sequence[int]) -> EngineDeadError | None:
        """How the engine died, if it did. What of the rows ended is taken in, whatever happens."""
        if not rows:
            return None
        outputs: SimpleQueue[RequestOutput | None] = SimpleQueue()
        future = self._start(self._results.work(rows), outputs.put)
        self._results.began()
        future.add_done_callback(lambda _: outputs.put(None))
        self._take_in(outputs)
        problem = future.exception()
        if problem is None:
            return None
        self._results.drop_unfinished()
        self._results.flush()
        if isinstance(problem, EngineDeadError):
            return problem
        raise problem

    def _start(self, work: ShardWork, on_output: OnOutput) -> "Future[list[RequestOutput]]":
        """An engine that dies before it can be asked has nothing against the rows."""
        for left in reversed(range(START_TRIES)):
            try:
                return self._worker.submit(work, on_output)
            except EngineDeadError as death:
                if not left:
                    said = f"the engine died {START_TRIES} times before it was asked for anything ({_words(death)})"
                    raise EngineKeepsDyingError(said) from death
        raise AssertionError("the last try returns or raises")

    def _take_in(self, outputs: "SimpleQueue[RequestOutput | None]") -> None:
        """Until None comes."""
        due = time.monotonic() + self._checkpoint_seconds
        while True:
            try:
                output = outputs.get(timeout=max(0.0, due - time.monotonic()))
            except Empty:
                output = None
            else:
                if output is None:
                    return
                self._take(output)
            if time.monotonic() >= due:
                self._checkpoint()
                due = time.monotonic() + self._checkpoint_seconds

    def _take(self, output: RequestOutput) -> None:
        self._answers.take(output)
        row = self._results.take(output)
        if row is not None:
            self._gate.worked()
            self._count(row)

    def _count(self, row: int) -> None:
        """Raises ErrorRowError or TooManyErrorsError where the row is an error more than the job allows."""
        error = self._results.error_of(row)
        try:
            if error is not None and self._errors.ends_at_first:
                self._results.forget(row)
                raise self._results.named(error)
            self._errors.count(self._results.num_rows(row), is_error=error is not None)
        except RunFailedError:
            self._results.flush()
            raise

    def _checkpoint(self) -> None:
        """One that fails in passing is made up for by the next: the shard's own commit is not optional."""
        try:
            self._results.flush()
        except OSError as problem:
            if not is_transient(problem):
                raise
            log.warning("a checkpoint was not written, the next one will hold its rows too: %s", problem)


def _words(death: EngineDeadError) -> str:
    said = " ".join(str(death).split())
    return said if len(said) <= _MOST_CHARACTERS else f"{said[:_MOST_CHARACTERS]}..."
