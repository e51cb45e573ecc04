"""`curve.json`: what the newest run that computed did over its time, in a few hundred points.

Like `progress.json` it is replaced as a whole and not synced, and decides nothing.
"""

import logging
import os
import threading
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise

from engine.errors import UserError
from tasks.storage.bucket_errors import BucketUnavailableError, LeaseLostError
from tasks.storage.damage import DamagedError
from tasks.storage.output_folder import OutputFolder
from tasks.storage.stored_json import read_json, stage_json

log = logging.getLogger(__name__)

MAX_POINTS = 500


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """`seconds` after the run began, all tokens and steps so far; `kv_bytes` are the most in use since the last point.

    `busy_seconds` were spent in steps, of all engines together.
    """

    seconds: float
    steps: int
    prefill: int
    label: int
    decode: int
    kv_bytes: int
    busy_seconds: float

    @property
    def tokens(self) -> int:
        return self.prefill + self.label + self.decode


@dataclass(frozen=True, slots=True)
class StepCurve:
    """A run's points, oldest first, and what a step and the KV cache may have at most; 0 where that is not known.

    `engines` were there when it began to compute.
    """

    run_id: str
    seconds: float = 0.0
    step_tokens: int = 0
    kv_budget_bytes: int = 0
    points: tuple[CurvePoint, ...] = ()
    engines: int = 1

    @property
    def spans(self) -> list[tuple[CurvePoint, CurvePoint]]:
        """Two points that follow each other, with time between them; before the first, when computing began."""
        start = CurvePoint(self._began, 0, 0, 0, 0, 0, 0.0)
        return [(a, b) for a, b in pairwise((start, *self.points)) if b.seconds > a.seconds]

    @property
    def _began(self) -> float:
        """As long before the first point as the steps took that it counts."""
        first = self.points[0] if self.points else CurvePoint(0.0, 0, 0, 0, 0, 0, 0.0)
        return max(0.0, first.seconds - max(first.busy_seconds / self.engines, 0.1))

    @property
    def computing_seconds(self) -> float:
        """For how long some engine was in a step, by the clock: neither loading is in it, nor another run's turn.

        What an engine says in a point may be of the span before it, so that of one all is counted; of several, which
        may join late, two may have been in a step at once.
        """
        if self.points and self.engines == 1:
            return min(self.points[-1].busy_seconds, self.points[-1].seconds - self._began)
        return sum(min(b.seconds - a.seconds, b.busy_seconds - a.busy_seconds) for a, b in self.spans)


@dataclass(slots=True)
class CurveRecorder:
    """Gathers points from any thread, and keeps `MAX_POINTS` at most: every second one goes where there are more.

    Sums so far lose nothing by it; of KV the higher of two stays.
    """

    curve: StepCurve
    _every: int = 1
    _seen: int = 0
    _points: list[CurvePoint] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, point: CurvePoint) -> None:
        """Nothing where nothing was computed since the last point."""
        with self._lock:
            last = self._points[-1] if self._points else None
            if (point.tokens, point.steps) == ((last.tokens, last.steps) if last is not None else (0, 0)):
                return
            if last is not None and self._seen % self._every:
                point = replace(point, kv_bytes=max(point.kv_bytes, last.kv_bytes))
                self._points[-1] = point
            else:
                self._points.append(point)
            self._seen += 1
            if len(self._points) > MAX_POINTS:
                self._halve()

    def budgets(self, *, step_tokens: int, kv_budget_bytes: int, engines: int) -> None:
        self.curve = replace(self.curve, step_tokens=step_tokens, kv_budget_bytes=kv_budget_bytes, engines=engines)

    def read(self, seconds: float) -> StepCurve:
        with self._lock:
            return replace(self.curve, seconds=round(seconds, 3), points=tuple(self._points))

    def _halve(self) -> None:
        pairs = zip(self._points[::2], self._points[1::2], strict=False)
        kept = [replace(later, kv_bytes=max(earlier.kv_bytes, later.kv_bytes)) for earlier, later in pairs]
        self._points = kept + self._points[len(kept) * 2 :]
        self._every *= 2
        self._seen = 0


def write_curve(folder: OutputFolder, curve: StepCurve) -> None:
    """A bucket that does not take it costs the report a chart, and no run its end."""
    os.replace(stage_json(folder.staged("curve.json"), asdict(curve)), folder.step_curve)
    try:
        folder.tell(folder.step_curve)
    except (BucketUnavailableError, LeaseLostError, UserError) as problem:
        log.warning("the curve of steps is not told: %s", problem)


def read_curve(folder: OutputFolder, run_id: str) -> StepCurve:
    """That run's; one without points where it is not there, or another's, or another version's."""
    try:
        content = read_json(folder.step_curve)
        points = tuple(CurvePoint(**point) for point in content.pop("points"))
        curve = StepCurve(**content, points=points)
    except (DamagedError, TypeError, KeyError):
        return StepCurve(run_id)
    return curve if curve.run_id == run_id else StepCurve(run_id)
