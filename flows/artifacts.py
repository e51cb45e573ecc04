"""Progress and summary on the flow run's page in Prefect."""

import contextvars
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact

SECONDS_BETWEEN_UPDATES = 10.0


class RunPage:
    """Writes the artifacts of one flow run, off the flow's own thread.

    A server that is away costs the page, never the run: what fails is logged once.
    """

    def __init__(self, key: str, logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        self._key = key
        self._logger = logger
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="artifacts")
        self._last: Future[None] | None = None
        self._next_update = 0.0
        self._progress_id: UUID | None = None
        self._failed = False

    def progress(self, fraction: float) -> None:
        """Shows `fraction` (0 to 1), at most once in ten seconds."""
        now = time.monotonic()
        if now < self._next_update or (self._last is not None and not self._last.done()):
            return
        self._next_update = now + SECONDS_BETWEEN_UPDATES
        self._last = self._write(self._write_progress, fraction)

    def close(self, fraction: float, summary: str) -> None:
        """Writes the last state and the summary (Markdown), and waits for both."""
        self._write(self._write_progress, fraction)
        self._write(self._write_summary, summary)
        self._writer.shutdown(wait=True)

    def _write(self, step: Any, value: object) -> Future[None]:
        # The artifact belongs to the flow run that the context names.
        return self._writer.submit(contextvars.copy_context().run, self._guarded, step, value)

    def _guarded(self, step: Any, value: object) -> None:
        try:
            step(value)
        except Exception as error:
            if not self._failed:
                self._failed = True
                self._logger.warning("artifacts are not written: %s", type(error).__name__)

    def _write_progress(self, fraction: float) -> None:
        percent = 100 * fraction
        if self._progress_id is None:
            created = create_progress_artifact(percent, key=f"{self._key}-progress", description="Tokens computed")
            assert isinstance(created, UUID), created
            self._progress_id = created
        else:
            update_progress_artifact(self._progress_id, percent)

    def _write_summary(self, summary: str) -> None:
        create_markdown_artifact(summary, key=f"{self._key}-summary")
