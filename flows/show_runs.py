"""`trunkline runs`: what is running and done."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

import pyarrow as pa
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from engine.errors import UserError
from flows.progress_bar import time_words
from flows.result_writer import write_result
from flows.sql_format import Format
from flows.terminal_text import as_text
from flows.text_table import UNLIMITED_WIDTH
from tasks.report.run_list import ListedRun, list_runs
from tasks.report.used_folders import used_folders
from tasks.storage.open_folder import open_folder
from tasks.storage.output_folder import OutputFolder

LAST_OF_EACH = 5

Answer = TypeVar("Answer")

_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("job", pa.string()),
        ("state", pa.string()),
        ("rows_done", pa.int64()),
        ("rows", pa.int64()),
        ("errors", pa.int64()),
        ("started_at", pa.string()),
        ("seconds", pa.float64()),
        ("seconds_left", pa.float64()),
        ("stage", pa.string()),
        ("folder", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class _ListedRuns:
    """As rows of a query."""

    runs: Sequence[ListedRun]
    schema: pa.Schema = _SCHEMA

    @property
    def columns(self) -> Sequence[str]:
        return self.schema.names

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pylist([asdict(run) for run in self.runs], schema=self.schema)


def show_runs(place: str | None, form: Literal["table", "csv", "json"], last: int | None) -> None:
    """Prints the newest `last` runs of the folder, or of each that the user's runs have used, oldest first.

    Raises UserError for a folder that is no output folder.
    """
    runs = find_runs(place, last)
    if form != "table":
        write_result(_ListedRuns(runs), Format(form), sys.stdout.buffer, terminal=sys.stdout.isatty())
        sys.stdout.buffer.flush()
        return
    console = Console(width=None if sys.stdout.isatty() else UNLIMITED_WIDTH)
    if not runs:
        console.print("no run is remembered here; trunkline runs FOLDER lists those of an output folder", markup=False)
        return
    console.print(_table(runs))


def find_runs(place: str | Path | None, last: int | None = None) -> list[ListedRun]:
    """Folder by folder, those that have ended before those that run."""
    if place is not None:
        return list_runs(output_folder(place).look(records_alone=True))[-(last or 0) :]
    remembered = of_each_used(lambda folder: list_runs(folder.look(records_alone=True)))
    listed = [run for _, runs in remembered for run in runs[-(last or LAST_OF_EACH) :]]
    return sorted(listed, key=lambda run: run.state == "running")


def of_each_used(ask: Callable[[OutputFolder], Answer]) -> Iterator[tuple[OutputFolder, Answer]]:
    """Each folder that the user's runs have used, with what it answers.

    Of one that cannot be read, such as a bucket that is away, a line is printed: it hides no other folder.
    """
    for place in used_folders():
        try:
            folder = open_folder(place)
            answer = ask(folder)
        except UserError as problem:
            typer.echo(f"trunkline: {problem}", err=True)
            continue
        yield folder, answer


def output_folder(place: str | Path) -> OutputFolder:
    """Raises UserError where no run has ever been."""
    folder = open_folder(place)
    if not folder.is_used:
        raise UserError(f"{place}: no run has used it; name the output folder of a run")
    return folder


def _table(runs: Sequence[ListedRun]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("run", "job", "state"):
        table.add_column(name, overflow="fold")
    for name in ("rows done", "errors"):
        table.add_column(name, justify="right")
    for name in ("started", "time", "left"):
        table.add_column(name, no_wrap=True)
    table.add_column("folder", overflow="fold")
    for run in runs:
        table.add_row(*map(as_text, _cells(run)))
    return table


def _cells(run: ListedRun) -> tuple[str, ...]:
    return (
        run.run_id,
        run.job,
        run.state if run.stage in (None, "scoring") else f"{run.state}: {run.stage}",
        "" if run.rows is None else f"{_count(run.rows_done)} of {run.rows:,}",
        _count(run.errors),
        run.started_at.removesuffix("+00:00").replace("T", " "),
        "" if run.seconds is None else time_words(run.seconds),
        "" if run.seconds_left is None else time_words(run.seconds_left),
        run.folder,
    )


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"
