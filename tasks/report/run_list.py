"""The runs of an output folder as a person asks for them, read without any of its results."""

from dataclasses import dataclass

from tasks.report.published import running_record
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run_progress import RunProgress, read_progress
from tasks.storage.run_record import INTERRUPTED, RUNNING, RunRecord, read_records


@dataclass(frozen=True, slots=True)
class ListedRun:
    """`rows_done` of the `rows` of its plan have an end, `errors` of them as errors; None where nobody counted them.

    `started_at` is a time of day, UTC. `stage` and `seconds_left` are those of a run that is alive.
    """

    run_id: str
    job: str
    state: str
    rows_done: int | None
    rows: int | None
    errors: int | None
    started_at: str
    seconds: float | None
    seconds_left: float | None
    stage: str | None
    folder: str


def list_runs(folder: OutputFolder) -> list[ListedRun]:
    """Oldest first. A run whose process is dead is interrupted, whatever its record says."""
    # Before the records: a run that ends meanwhile is then seen as ended.
    progress = read_progress(folder)
    records = read_records(folder)
    alive = running_record(folder, records)
    return [_listed(str(folder), record, record is alive, progress) for record in records]


def _listed(folder: str, record: RunRecord, alive: bool, progress: RunProgress | None) -> ListedRun:
    own = progress if progress is not None and progress.run_id == record.run_id else None
    done, errors, seconds = record.rows_done, record.row_errors, record.seconds
    if own is not None:
        done = own.rows_done if done is None else done
        errors = own.row_errors if errors is None else errors
        seconds = own.seconds if seconds is None else seconds
    return ListedRun(
        run_id=record.run_id,
        job=record.name,
        state=INTERRUPTED if record.status == RUNNING and not alive else record.status,
        rows_done=done,
        rows=record.rows,
        errors=errors,
        started_at=record.started_at,
        seconds=seconds,
        seconds_left=own.seconds_left if own is not None and alive else None,
        stage=own.stage if own is not None and alive else None,
        folder=folder,
    )
