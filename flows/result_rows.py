"""A query's answer, row by row, as values of Python."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa

from tasks.source.cells import cells, has_cells
from tasks.source.row_error import RowError


class Rows(Protocol):
    """A table that is read once, as a `tasks.query.QueryResult` is."""

    @property
    def schema(self) -> pa.Schema: ...

    @property
    def columns(self) -> Sequence[str]: ...

    def batches(self) -> Iterable[pa.RecordBatch]: ...


def rows_of(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    return zip(*map(_values, batch.columns), strict=True)


def _values(column: pa.Array) -> list[Any]:
    if has_cells(column.type):
        return list(map(_printable, cells(column)))
    return [None if value is None else str(value) for value in column.to_pylist()]


def _printable(value: Any) -> Any:
    """Bytes that are no text as DuckDB writes them."""
    if isinstance(value, RowError):
        return value.message
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return list(map(_printable, value)) if isinstance(value, list) else value
