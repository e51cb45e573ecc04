"""`trunkline sql`: from a query to bytes."""

import os
import sys
from pathlib import Path

import typer

from engine.errors import UserError
from flows.result_writer import write_result
from flows.sql_format import Format, choose_format
from flows.terminal_text import harmless
from tasks.query import query
from tasks.report.latest import latest_output
from tasks.report.views import attach_statements
from tasks.storage.file_mode import file_mode
from tasks.storage.output_folder import OutputFolder


def show_attach(output: Path | None) -> None:
    """Prints the SQL that opens the results in another DuckDB, on one line."""
    folder = output.expanduser().absolute() if output is not None else latest_output()
    lines = attach_statements(OutputFolder(folder)).splitlines()
    typer.echo(" ".join(line for line in lines if not line.startswith("--")) + ";")


def run_sql(statement: str, output: Path | None, form: Format | None, to: Path | None) -> None:
    """Answers one SELECT over the views of an output folder, by default that of the latest run."""
    form = choose_format(form, to)
    folder = output if output is not None else latest_output()
    with query(folder, statement) as result:
        if result.warning is not None:
            typer.echo(f"trunkline: {harmless(result.warning)}", err=True)
        if to is None:
            write_result(result, form, sys.stdout.buffer, terminal=sys.stdout.isatty())
            sys.stdout.buffer.flush()
            return
        try:
            with open(to, "wb", opener=_private) as file:
                write_result(result, form, file, terminal=False)
        except OSError as error:
            raise UserError(f"--to {to}: {error.strerror}") from error


def _private(name: str, flags: int) -> int:
    """A file that is there keeps who may read it."""
    return os.open(name, flags, file_mode())
