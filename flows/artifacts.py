"""Progress, summary, errors and the way to the report on the flow run's page in Prefect."""

import contextvars
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.progress import Progress
from flows.progress_bar import done_words, left_words
from flows.report import RunReport

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
        self._told = ""
        self._failed = False

    def progress(self, progress: Progress) -> None:
        """Shows how far the run is, at most once in ten seconds: of its tokens, how fast, what is left, what failed."""
        self._told = done_words(progress)
        words = ", ".join(words for words in (self._told, left_words(progress)) if words)
        now = time.monotonic()
        if now < self._next_update or (self._last is not None and not self._last.done()):
            return
        self._next_update = now + SECONDS_BETWEEN_UPDATES
        self._last = self._write(partial(self._write_progress, progress.fraction, words))

    def close(self, report: RunReport) -> None:
        """Writes the last state, the summary, a table of errors where there are any, and a link; waits for all."""
        self._write(partial(self._write_progress, report.finished_fraction, self._told))
        name, counted = report.facts()[0]
        summary = partial(create_markdown_artifact, report.markdown(), description=f"{name}: {counted}")
        self._write(partial(summary, key=f"{self._key}-summary"))
        if report.published.error_types:
            rows = [{"error": kind, "rows": count} for kind, count in report.published.error_types]
            words = f"{report.published.errors:,} of {report.published.rows:,} rows are errors"
            self._write(partial(create_table_artifact, rows, key=f"{self._key}-errors", description=words))
        if report.page.is_file():
            words = f"On the machine of the run, for its owner: `{report.page}`"
            link = partial(create_link_artifact, report.page.as_uri(), link_text="report.html", description=words)
            self._write(partial(link, key=f"{self._key}-report"))
        self._writer.shutdown(wait=True)

    def _write(self, step: Callable[[], object]) -> "Future[None]":
        # The artifact belongs to the flow run that the context names.
        return self._writer.submit(contextvars.copy_context().run, self._guarded, step)

    def _guarded(self, step: Callable[[], object]) -> None:
        try:
            step()
        except Exception as error:
            if not self._failed:
                self._failed = True
                self._logger.warning("artifacts are not written: %s", type(error).__name__)

    def _write_progress(self, fraction: float, words: str) -> None:
        percent = 100 * fraction
        if self._progress_id is None:
            created = create_progress_artifact(percent, key=f"{self._key}-progress", description=words)
            assert isinstance(created, UUID), created
            self._progress_id = created
        else:
            update_progress_artifact(self._progress_id, percent, description=words)
