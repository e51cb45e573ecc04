"""`trunkline sql`: from a query to bytes."""

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from engine.errors import UserError
from flows.result_writer import write_result
from flows.sql_format import Format, choose_format
from flows.terminal_text import harmless
from tasks.query import QueryResult, query
from tasks.report.latest import latest_output
from tasks.report.table_file import check_table_file, write_table_file
from tasks.report.views import attach_statements
from tasks.storage.commit import open_private, replacing
from tasks.storage.open_folder import open_folder


def show_attach(output: str | None) -> None:
    """Prints the SQL that opens the results in another DuckDB, on one line."""
    folder = (open_folder(output) if output is not None else latest_output()).look()
    lines = attach_statements(folder).splitlines()
    typer.echo(" ".join(line for line in lines if not line.startswith("--")) + ";")


def run_sql(
    statement: str, output: str | None, form: Format | None, to: Path | None, others: Sequence[str] = ()
) -> None:
    """Answers one SELECT over the views of an output folder, by default that of the latest run.

    `others` are written NAME=FOLDER.
    """
    form = choose_format(form, to)
    if to is not None and form is Format.DUCKDB:
        check_table_file(to)
    folder = output if output is not None else str(latest_output())
    with query(folder, statement, others=_named(others)) as result:
        if result.warning is not None:
            typer.echo(f"trunkline: {harmless(result.warning)}", err=True)
        if to is None:
            write_result(result, form, sys.stdout.buffer, terminal=sys.stdout.isatty())
            sys.stdout.buffer.flush()
            return
        try:
            _write(result, form, to)
        except OSError as error:
            raise UserError(f"--to {to}: {error.strerror}") from error


def _write(result: QueryResult, form: Format, to: Path) -> None:
    """A file appears whole or not at all; a pipe or a device takes what comes."""
    if form is Format.DUCKDB:
        write_table_file(to, result.schema, result.batches())
    elif to.exists() and not to.is_file():
        with to.open("wb") as file:
            write_result(result, form, file, terminal=False)
    else:
        with replacing(to) as staged, open_private(staged) as file:
            write_result(result, form, file, terminal=False)


def _named(others: Sequence[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for text in others:
        name, equals, folder = text.partition("=")
        if not equals or not folder:
            raise UserError(f"--with {text}: write it as NAME=FOLDER, such as --with other=runs/other")
        if name.lower() in map(str.lower, named):
            raise UserError(f"--with {text}: {name} is the name of a folder already")
        named[name] = folder
    return named
