"""SQL lives in `sql/`, one file for each statement. Values are parameters; what cannot be one is quoted here."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import duckdb

from engine.errors import UserError

# What a person or a program writes; DuckDB's parser takes minutes for some megabytes.
_LONGEST_QUERY = 1_000_000

_CURES = ("Did you mean", "Candidate bindings", "Either add")

_FOLDER = Path(__file__).resolve().parents[2] / "sql"


def identifier(name: str) -> str:
    """A quoted name: whatever it holds, it stays one name."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: str) -> str:
    """A quoted text, for the places (a view's file list) where DuckDB takes no parameter."""
    return "'" + value.replace("'", "''") + "'"


def literals(values: Sequence[str]) -> str:
    return "[" + ", ".join(map(literal, values)) + "]"


def statement(name: str, **fragments: str) -> str:
    """The statement of `sql/<name>.sql`; `{fragments}` in it must come from the functions above."""
    text = _read(name)
    return text.format_map(fragments) if fragments else text


@cache
def _read(name: str) -> str:
    return (_FOLDER / f"{name}.sql").read_text(encoding="utf-8")


def single_select(sql: str, what: str) -> str:
    """`sql`, if it is one statement that only reads. Raises UserError that begins with `what` otherwise."""
    if len(sql) > _LONGEST_QUERY:
        raise UserError(f"{what}: {len(sql):,} characters are more than a query may have, {_LONGEST_QUERY:,}")
    try:
        found = duckdb.extract_statements(sql)
    except duckdb.Error as problem:
        raise UserError(f"{what}: {message_of(problem)}") from None
    if len(found) != 1 or found[0].type != duckdb.StatementType.SELECT:
        kinds = ", ".join(str(one.type).rpartition(".")[2] for one in found) or "nothing"
        raise UserError(f"{what}: give one SELECT statement (found: {kinds})")
    return sql


def message_of(problem: BaseException) -> str:
    """DuckDB's message in one line, with the names that it would know, without the drawing of the query below it."""
    first, *more = str(problem).strip().split("\n")
    cure = next((line for line in more if line.startswith(_CURES)), "")
    return f"{first} {cure.replace(': :', ':')}".rstrip()
