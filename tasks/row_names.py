"""Which row of the user's a request is, for people."""

from pathlib import Path

from tasks.run_failed import ErrorRowError
from tasks.storage.duck import working_connection
from tasks.storage.run import Run
from tasks.storage.statements import statement
from tasks.storage.stored_plan import ROWS, plan_folder


def error_row(run: Run, plan_id: str, request_hash: str, error_type: str, message: str) -> ErrorRowError:
    """Names the first row that asks this, and why it is an error."""
    [(custom_id,)] = _first(
        plan_folder(run.folder, plan_id) / ROWS, statement("steps/first_row"), request_hash=request_hash
    )
    return ErrorRowError(f"row {custom_id!r}: {error_type}: {message} (on_error: fail)")


def refuse_rejected(rows: Path) -> None:
    """Raises ErrorRowError that names the first row that was rejected, where one was."""
    for custom_id, error_type, message in _first(rows, statement("steps/first_rejected")):
        raise ErrorRowError(f"row {custom_id!r}: {error_type}: {message} (on_error: fail)")


def _first(rows: Path, sql: str, **values: str) -> list[tuple[str, ...]]:
    with working_connection(rows.parent) as connection:
        return connection.execute(sql, {"rows": str(rows), **values}).fetchall()
