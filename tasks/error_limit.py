"""When error rows end a run: at the first one, or at too many."""

import threading

from tasks.job.job import ScoringJob
from tasks.run_failed import TooManyErrorsError

# Of fewer rows nobody knows how many of all will be errors.
LEAST_ROWS = 100


class ErrorLimit:
    """Counts a run's rows as they end, in all of its shards' threads.

    Rows that were rejected before the model saw them end first, so they count as if they lay evenly among the others:
    of the rows so far they are the part that they are of all rows.
    """

    def __init__(self, job: ScoringJob, *, rows: int = 0, rejected: int = 0, pending: int = LEAST_ROWS) -> None:
        """`rows` are the table's, `rejected` of which were, and `pending` those that the run is to score, at least."""
        self.ends_at_first = job.on_error == "fail"
        self._max_rate = job.max_error_rate
        self._rejected = rejected / rows if rows else 0.0
        self._least = min(LEAST_ROWS, pending)
        self._ended = 0
        self._errors = 0
        self._lock = threading.Lock()

    @property
    def rate(self) -> float:
        """The part of the rows so far that are errors."""
        failed = self._errors / self._ended if self._ended else 0.0
        return self._rejected + (1 - self._rejected) * failed

    def check_rejected(self) -> None:
        """Raises TooManyErrorsError where the rows that were rejected are too many by themselves."""
        if self._rejected > self._max_rate:
            raise TooManyErrorsError(f"{self._rejected:.1%} of the rows were rejected; {self._allowed()}")

    def count(self, rows: int, *, is_error: bool) -> None:
        """`rows` ended with one answer, or one error. Raises TooManyErrorsError."""
        with self._lock:
            self._ended += rows
            self._errors += rows * is_error
            is_over = is_error and self._ended >= self._least and self.rate > self._max_rate
        if is_over:
            raise TooManyErrorsError(
                f"{self._errors:,} of {self._ended:,} rows scored so far are errors, {self.rate:.1%} with those that "
                f"were rejected before; {self._allowed()}"
            )

    def _allowed(self) -> str:
        return f"max_error_rate allows {self._max_rate:.1%}"
