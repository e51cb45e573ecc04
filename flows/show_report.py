"""`trunkline report`: the page about an output folder, written anew."""

import typer

from engine.errors import UserError
from flows.show_runs import output_folder
from tasks.report.latest import latest_output
from tasks.report.page import write_report
from tasks.storage.damage import DamagedError


def write_and_tell(place: str | None) -> None:
    """Prints where the page is. Raises UserError for a folder without results, or that cannot be written to."""
    found = (latest_output() if place is None else output_folder(place)).look()
    try:
        typer.echo(str(write_report(found)))
    except (DamagedError, ValueError) as problem:
        raise UserError(f"{found}: no report: {problem}; score the job again to mend the folder") from None
    except OSError as problem:
        raise UserError(f"{found}: the report cannot be written ({problem.strerror})") from None
