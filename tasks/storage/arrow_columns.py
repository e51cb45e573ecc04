"""A query's columns as Arrow can hold them."""

from collections.abc import Sequence

import duckdb
from duckdb.sqltypes import DuckDBPyType

from tasks.storage.statements import identifier, statement

_NESTED = {"array", "list", "map", "struct"}
# Arrow gets a bit string's bytes, a time without its zone, -1 for a large unsigned number; Parquet has no intervals.
_FOREIGN = {"bignum", "bit", "geometry", "interval", "time with time zone", "uhugeint", "union", "variant", "varint"}


def arrow_columns(relation: duckdb.DuckDBPyRelation, places: Sequence[int] | None = None) -> duckdb.DuckDBPyRelation:
    """All columns, or those at some `places`: one whose type Arrow or Parquet would not hold whole is its text, by
    DuckDB's own cast. A name that is another's before it gets a number, for no file has both.
    """
    names, kinds = unique_names(relation.columns), relation.types
    places = range(len(names)) if places is None else places
    return relation.project(", ".join(_column(place, names[place], kinds[place]) for place in places))


def unique_names(names: Sequence[str]) -> list[str]:
    """As DuckDB numbers a table's columns: in capitals or not, `id` and `id` become `id` and `id_1`."""
    taken = {name.lower() for name in names}
    seen: set[str] = set()
    unique = []
    for name in names:
        free, count = name, 0
        while free.lower() in seen or (count and free.lower() in taken):
            count += 1
            free = f"{name}_{count}"
        seen.add(free.lower())
        unique.append(free)
    return unique


def _column(place: int, name: str, kind: DuckDBPyType) -> str:
    column, named = f"#{place + 1}", identifier(name)
    return statement("steps/as_text", column=column, alias=named) if _is_foreign(kind) else f"{column} AS {named}"


def _is_foreign(kind: DuckDBPyType) -> bool:
    if kind.id in _NESTED:
        return any(_is_foreign(child) for _, child in kind.children if isinstance(child, DuckDBPyType))
    return kind.id in _FOREIGN
