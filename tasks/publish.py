"""Last step: the views over everything committed, and the figures that a run ends with."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from engine.failpoint import failpoint
from tasks.job.task import Task
from tasks.report.latest import remember_output
from tasks.report.page import publish_report
from tasks.report.published import shown_plan
from tasks.report.totals import Savings, Totals, read_totals
from tasks.report.views import open_views, write_views
from tasks.request.task_type import Shown
from tasks.request.task_types import TASK_TYPES
from tasks.storage.duck import MEMORY_LIMIT
from tasks.storage.interruptible import fetch_all
from tasks.storage.manifests import read_manifests, remove_superseded
from tasks.storage.run import Run
from tasks.storage.run_record import read_records, update_record
from tasks.storage.statements import statement
from tasks.storage.stored_plan import load_plan, remove_other_plans

# Beside all else that a run holds; more is spilled, but for the numbers of a median, of which it holds four million.
_MEMORY_LIMIT, _FEW_ROWS = "112MB", 2_000_000


@dataclass(frozen=True, slots=True)
class Answers:
    """What a person sees of the results of one type, `task`: the `rows` that the type has `shown`."""

    task: str
    shown: Shown
    rows: tuple[tuple[str, str | int], ...]


@dataclass(frozen=True, slots=True)
class Published:
    """Rows of the plan: `rows` = `results` + `errors` + `missing`. Tokens are of what this run scored itself.

    `answers` are of each type that rows asked for; `error_types` are (name, rows), most first.
    """

    rows: int
    results: int
    errors: int
    missing: int
    answers: tuple[Answers, ...]
    error_types: tuple[tuple[str, int], ...]
    prompt_tokens: int
    unique_prompt_tokens: int
    computed_prompt_tokens: int
    saved_fraction: float
    ideal_saved_fraction: float
    database: Path


def publish_results(run: Run, plan_id: str) -> Published:
    """May run at any time, after a failure too: what is committed can then be queried."""
    failpoint("publish.start")
    write_views(run.folder, plan_id)
    is_small = load_plan(run.folder, plan_id).rows <= _FEW_ROWS
    try:
        published = _tell(run, plan_id, _MEMORY_LIMIT if is_small else MEMORY_LIMIT)
    except duckdb.OutOfMemoryException:  # a row may have a thousand items
        published = _tell(run, plan_id, MEMORY_LIMIT)
    _remove_unread(run, plan_id)
    remember_output(run.folder)
    failpoint("publish.done")
    return published


def _remove_unread(run: Run, plan_id: str) -> None:
    """What neither the new views name nor those of the publication before, which other programs may have open."""
    kept = plan_id, shown_plan(run.folder, read_records(run.folder), before=plan_id)
    remove_other_plans(run.folder, kept)
    remove_superseded(run.folder, run.run_id, kept)


def _tell(run: Run, plan_id: str, memory_limit: str) -> Published:
    """Puts figures of what is committed into the run's record and its report."""
    with open_views(run.folder, plan_id, read_manifests(run.folder), memory_limit=memory_limit) as connection:
        totals = read_totals(connection)
        published = _figures(run, plan_id, totals, connection)
        ended = published.results + published.errors
        update_record(run.folder, run.run_id, published_plan=plan_id, rows_done=ended, row_errors=published.errors)
        failpoint("publish.recorded")
        publish_report(run.folder, plan_id, connection, totals)
    return published


def _figures(run: Run, plan_id: str, totals: Totals, connection: duckdb.DuckDBPyConnection) -> Published:
    rows = load_plan(run.folder, plan_id).rows
    savings = totals.savings.get(run.run_id, Savings())
    return Published(
        rows=rows,
        results=totals.results,
        errors=totals.errors,
        missing=rows - totals.results - totals.errors,
        answers=tuple(_answers(connection, run.job.task)),
        error_types=totals.error_types,
        prompt_tokens=savings.prompt,
        unique_prompt_tokens=savings.unique,
        computed_prompt_tokens=savings.computed,
        saved_fraction=savings.saved_fraction,
        ideal_saved_fraction=savings.ideal_saved_fraction,
        database=run.folder.database,
    )


def _answers(connection: duckdb.DuckDBPyConnection, task: Task) -> Iterator[Answers]:
    """Of each type that has results, by name; of the job's own where there are none, or no row names another."""
    asked = [name for (name,) in _all(connection, "tasks", own=task.type)] if task.column is not None else []
    for name in asked or [task.type]:
        shown = TASK_TYPES[name].shown
        yield Answers(name, shown, tuple(_all(connection, shown.statement, own=task.type, task=name)))


def _all(connection: duckdb.DuckDBPyConnection, name: str, **values: str) -> list[Any]:
    return fetch_all(connection, statement(f"report/{name}"), values)
