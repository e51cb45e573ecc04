"""What the views add up to, asked once for all who tell of it: to plan a query takes longer than to run a small one."""

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb

from tasks.storage.interruptible import fetch_all
from tasks.storage.statements import statement


@dataclass(frozen=True, slots=True)
class Savings:
    """Prompt tokens of what one run committed: as the rows have them, of `unique` prompts, and computed."""

    prompt: int = 0
    unique: int = 0
    computed: int = 0
    saved_fraction: float = 0.0
    ideal_saved_fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class Totals:
    """Rows of the plan that have an end. `error_types` are (name, rows), most first; `savings` are by run."""

    results: int
    errors: int
    error_types: tuple[tuple[str, int], ...]
    savings: Mapping[str, Savings]


def read_totals(connection: duckdb.DuckDBPyConnection) -> Totals:
    ends, savings = (fetch_all(connection, statement(f"report/{name}"), {}) for name in ("end_counts", "savings"))
    error_types = tuple((kind, rows) for status, kind, rows in ends if status == "error")
    results = sum(rows for status, _, rows in ends if status == "ok")
    return Totals(
        results=results,
        errors=sum(rows for _, rows in error_types),
        error_types=error_types,
        savings={run_id: Savings(*figures) for run_id, *figures in savings},
    )
