"""`trunkline sql`: from a query to bytes."""

import sys
from pathlib import Path

import typer

from engine.errors import UserError
from flows.result_writer import write_result
from flows.sql_format import Format, choose_format
from tasks.latest import latest_output
from tasks.query import query


def run_sql(statement: str, output: Path | None, form: Format | None, to: Path | None) -> None:
    """Answers one SELECT over the views of an output folder, by default that of the latest run."""
    form = choose_format(form, to)
    folder = output if output is not None else latest_output()
    with query(folder, statement) as result:
        if result.warning is not None:
            typer.echo(f"trunkline: {result.warning}", err=True)
        if to is None:
            write_result(result, form, sys.stdout.buffer, terminal=sys.stdout.isatty())
            sys.stdout.buffer.flush()
            return
        try:
            with to.open("wb") as file:
                write_result(result, form, file, terminal=False)
        except OSError as error:
            raise UserError(f"--to {to}: {error.strerror}") from error
