"""Events in Prefect's feed about a run of ours: automations fire on them, and they say more than a flow run's state.

A server that is away costs the event, never the run.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

from prefect.events import emit_event
from prefect.events.worker import EventsWorker

from flows.dataset import asset_key
from tasks.run_failed import TooManyErrorsError
from tasks.storage.run import Run
from tasks.storage.run_record import RunRecord, read_records
from tasks.storage.stop_request import RunStoppedError

log = logging.getLogger(__name__)

What = Literal["completed", "failed", "stopped", "interrupted", "error-rate-exceeded"]

# How long the last events of a process may take.
SECONDS_TO_SEND = 3.0


@contextmanager
def announced_run(opening: AbstractContextManager[Run]) -> Iterator[Run]:
    """The run of `tasks.storage.run.open_run`, whose end is an event: `trunkline.scoring-run.completed`, `.stopped`,
    `.failed` or `.interrupted`; before `.failed`, `.error-rate-exceeded` where that is why.

    A run that did not begin, as where another has the folder, is no more than Prefect's own failed flow run.
    """
    begun: Run | None = None
    try:
        with opening as begun:
            yield begun
    except BaseException as problem:
        if begun is not None:
            if isinstance(problem, TooManyErrorsError):
                emit_run_event("error-rate-exceeded", begun, allowed=begun.job.max_error_rate)
            emit_run_event(_end(problem), begun, cause=type(problem).__name__)
        raise
    emit_run_event("completed", begun)


def emit_run_event(what: What, run: Run, **more: str | float) -> None:
    """`trunkline.scoring-run.<what>` about the output folder, with what the run's record says, and nothing of a row."""
    try:
        record = next((one for one in read_records(run.folder) if one.run_id == run.run_id), None)
        emit_event(
            event=f"trunkline.scoring-run.{what}",
            resource={
                "prefect.resource.id": asset_key(str(run.folder)),
                "prefect.resource.name": run.job.name,
                "trunkline.run-id": run.run_id,
            },
            payload={"run_id": run.run_id, "job": run.job.name, **({} if record is None else _facts(record)), **more},
        )
    except Exception as problem:
        log.warning("no event is sent of the run's end (%s)", type(problem).__name__)


def send_events() -> None:
    """Waits a little for what is still to be sent: a process that ends by `os._exit` takes it along."""
    EventsWorker.drain_all(timeout=SECONDS_TO_SEND, at_exit=False)


def _end(problem: BaseException) -> What:
    if isinstance(problem, RunStoppedError):
        return "stopped"
    return "failed" if isinstance(problem, Exception) else "interrupted"


def _facts(record: RunRecord) -> dict[str, str | int | float | None]:
    return {
        "model": record.model,
        "device": record.device,
        "rows": record.rows,
        "rows_done": record.rows_done,
        "row_errors": record.row_errors,
        "from_store": record.from_store,
        "scored": record.scored,
        "prompt_tokens": record.prompt_tokens,
        "computed_prompt_tokens": record.computed_prompt_tokens,
        "generated_tokens": record.generated_tokens,
        "seconds": record.seconds,
    }
