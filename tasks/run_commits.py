"""The commits of a run's shards, which are threads of one process: none once the run has ended."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import EngineClosedError

# How long an ended run waits for its shards to commit what they have.
ENDING_SECONDS = 1.0


class RunCommits:
    """One for all shards of a run, on whichever worker."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False
        self._commits = threading.Lock()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """As long as a shard has something to commit."""
        with self._changed:
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Raises EngineClosedError once the run has ended: another may have the folder, and ask for the same rows."""
        with self._commits:
            if self._closed:
                raise EngineClosedError("the run has ended")
            yield

    def close(self) -> None:
        """Ends the run's commits, after those of shards that end by themselves within `ENDING_SECONDS`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._inside, ENDING_SECONDS)
        with self._commits:
            self._closed = True
