"""What others see and want of a run while it goes on: its progress as a file, and a request to end it."""

import logging
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from types import TracebackType

from engine.errors import EngineClosedError
from engine.loop.step_budget import known_step_tokens
from engine.stages import abandonable
from flows.progress import Progress, tell
from tasks.report.live_counts import LiveCounts
from tasks.storage.run import Run
from tasks.storage.run_progress import RunProgress, write_progress
from tasks.storage.step_curve import CurvePoint, CurveRecorder, StepCurve, write_curve
from tasks.storage.stop_request import RunStoppedError, is_asked
from tasks.storage.stored_plan import StoredPlan
from tasks.workers import Workers

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_WRITES = 2.0
# What is committed is counted from all manifests: of many, more seldom, so that it costs a hundredth of a run.
SHARE_OF_TIME = 0.01


class RunControl(AbstractContextManager["RunControl"]):
    """Watches over one run from a thread of its own while the context is open.

    A request to end the run closes its workers; who waits for them leaves the context by RunStoppedError.
    """

    def __init__(self, run: Run, workers: Workers) -> None:
        assert run.holder is not None, "a run that is watched holds its folder"
        self._run = run
        self._holder = run.holder
        self._workers = workers
        self._started = time.monotonic()
        self._progress = Progress("starting")
        self._counts: LiveCounts | None = None
        self._written = RunProgress(run.run_id, "starting", 0.0)
        self._next_count = 0.0
        self._before = workers.totals()
        self._curve = CurveRecorder(StepCurve(run.run_id))
        self._asked = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="run-control", daemon=True)

    def __enter__(self) -> "RunControl":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self.asked and isinstance(problem, EngineClosedError):
            raise stopped() from problem

    @property
    def asked(self) -> bool:
        """Whether somebody wants the run to end."""
        return self._asked.is_set()

    def stoppable(self) -> AbstractContextManager[None]:
        """What this thread does within is left, by RunStoppedError, at the next `engine.stages.checkpoint`."""
        return abandonable(self._check)

    def _check(self) -> None:
        if self.asked:
            raise stopped()

    def count(self, planned: StoredPlan) -> None:
        """From now on progress has the rows of this plan that are committed, and the curve what a step may have."""
        run = self._run
        step_tokens = known_step_tokens(run.model, run.config, run.device) or 0
        engines = max(1, len(self._workers.each()))
        kv_budget_bytes = planned.summary.kv_cache_memory * engines
        self._curve.budgets(step_tokens=step_tokens, kv_budget_bytes=kv_budget_bytes, engines=engines)
        self._counts = LiveCounts(self._run.folder, self._run.run_id, planned)

    def tell(self, progress: Progress) -> None:
        """To whoever watches, in this process or through the file."""
        self._progress = progress
        tell(progress)

    def write_curve(self) -> None:
        """What was computed until now, for the report; a run that computed nothing leaves the last one's."""
        self._add_point()
        curve = self._curve.read(time.monotonic() - self._started)
        if curve.points:
            write_curve(self._run.folder, curve)

    def _add_point(self) -> None:
        now = self._workers.totals()
        done = now - self._before
        seconds = round(time.monotonic() - self._started, 3)
        busy = round(done.busy_seconds, 3)
        self._curve.add(CurvePoint(seconds, done.steps, done.prefill, done.label, done.decode, now.kv_bytes, busy))

    def _watch(self) -> None:
        next_write = 0.0
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            if not self.asked and is_asked(self._run.folder, self._holder):
                self._asked.set()
                self._workers.close()
            self._add_point()
            if time.monotonic() >= next_write:
                self._write()
                next_write = time.monotonic() + SECONDS_BETWEEN_WRITES
        self._next_count = 0.0
        self._write()

    def _write(self) -> None:
        progress = self._progress
        try:
            self._written = replace(
                self._counted(),
                stage=progress.stage,
                seconds=round(time.monotonic() - self._started, 3),
                tokens_per_second=round(progress.tokens_per_second, 1) or None,
                seconds_left=None if progress.seconds_left is None else round(progress.seconds_left, 1),
            )
            write_progress(self._run.folder, self._written)
        except OSError as problem:
            # A disk that is full, or gone, ends the run where it commits; who asks it to end is heard all the same.
            log.warning("progress is not written (%s)", problem.strerror)

    def _counted(self) -> RunProgress:
        """What was written last, with what is committed now if it is time to count again."""
        began = time.monotonic()
        if self._counts is None or began < self._next_count:
            return self._written
        counts = self._counts.read()
        ended = time.monotonic()
        self._next_count = ended + (ended - began) / SHARE_OF_TIME
        return replace(self._written, **asdict(counts))


def stopped(done: int = 0, rows: int = 0) -> RunStoppedError:
    """What a run ends with that was asked to, `done` of whose `rows` have an end; before its plan nobody knows them."""
    so_far = f" with {done:,} of {rows:,} rows done" if rows else ""
    return RunStoppedError(f"stopped by trunkline stop{so_far}; the same command continues")
