"""`trunkline stop`: asks a run to end, and waits for it."""

import time

import typer

from engine.errors import UserError
from engine.file_lock import Holder
from flows.show_runs import of_each_used, output_folder
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run_record import COMPLETED, INTERRUPTED, RUNNING, RunRecord, read_records
from tasks.storage.stop_request import ask_to_stop

POLL_SECONDS = 0.2


def stop_run(place: str | None, wait: float) -> int:
    """Asks the run of the folder, or the only one of this user, to end, and waits at most `wait` seconds for it.

    Returns the exit code: 0 where it ended or is not waited for, 1 where it has not ended yet. Raises UserError where
    nothing runs, or several runs do and none is named.
    """
    folder = (_only_running() if place is None else output_folder(place)).look(records_alone=True)
    holder = folder.holder()
    if holder is None:
        raise UserError(f"{folder}: nothing runs there")
    if not holder.token:
        raise UserError(f"{folder}: a run is just beginning there; try again")
    ask_to_stop(folder, holder)
    typer.echo(f"{folder}: asked {holder} to end its run at the next step")
    if not wait:
        return 0
    if not _ended(folder, holder, wait):
        typer.echo(f"{folder}: still running after {wait:g} s; it ends at its next step", err=True)
        return 1
    typer.echo(f"{folder}: {_end(_record_of(folder.look(records_alone=True), holder))}")
    return 0


def _only_running() -> OutputFolder:
    running = [folder for folder, holder in of_each_used(OutputFolder.holder) if holder is not None]
    if not running:
        raise UserError("nothing is running in the folders that your runs have used; name one: trunkline stop FOLDER")
    if len(running) > 1:
        raise UserError(f"several runs go on, in {', '.join(map(str, running))}; name one of them")
    return running[0]


def _ended(folder: OutputFolder, holder: Holder, wait: float) -> bool:
    """Whether the lock was given up in time: it is the last that a run does, and the kernel's where it dies."""
    deadline = time.monotonic() + wait
    while (now := folder.holder()) is not None and now.token == holder.token:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _record_of(folder: OutputFolder, holder: Holder) -> RunRecord | None:
    return next((one for one in reversed(read_records(folder)) if one.holder == holder.token), None)


def _end(record: RunRecord | None) -> str:
    if record is None:
        return "it ended before it was recorded"
    done = "" if record.rows is None else f"; {record.rows_done or 0:,} of {record.rows:,} rows are done"
    # Whose process died could not write its end.
    status = INTERRUPTED if record.status == RUNNING else record.status
    again = "" if status == COMPLETED else ", trunkline score with the same job continues"
    return f"{record.run_id} {status}{done}{again}"
