"""What the shards of one worker heed of each other, which are threads of one process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import EngineDeadError
from tasks.run_failed import EngineKeepsDyingError


class ShardGate:
    """Lets shards of a worker compute side by side, or one alone. What other workers compute is none of its matter.

    Whoever waits to be alone goes before those that would come beside others, as a readers-writer lock does that
    prefers writers.
    """

    def __init__(self, max_engine_deaths: int) -> None:
        self._max_deaths = max_engine_deaths
        self._deaths = 0
        self._changed = threading.Condition()
        self._beside = 0
        self._waiting = 0
        self._alone = False

    @contextmanager
    def beside(self) -> Iterator[None]:
        """While others compute too."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._waiting)
            self._beside += 1
        try:
            yield
        finally:
            with self._changed:
                self._beside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no other computes."""
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not self._alone and not self._beside)
            self._waiting -= 1
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()

    @property
    def deaths(self) -> int:
        """How often the engine died over a shard alone since a row of any shard ended."""
        return self._deaths

    def worked(self) -> None:
        """A row ended."""
        self._deaths = 0

    def died(self, death: EngineDeadError) -> None:
        """Raises EngineKeepsDyingError where it died so often in a row that rows are hardly the reason."""
        self._deaths += 1
        if self._deaths >= self._max_deaths:
            raise EngineKeepsDyingError(
                f"the engine died {self._deaths} times in a row over rows that were asked alone, and computed none "
                f"between ({death}); if the rows are what kills it, allow more with max_engine_deaths"
            )
