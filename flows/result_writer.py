"""Query results as a table, CSV, JSON or Parquet."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table

from engine.errors import UserError
from flows.sql_format import Format
from flows.terminal_text import as_text
from tasks.source.cells import cells, has_cells, text_of
from tasks.source.row_error import RowError

TABLE_ROWS = 1_000
# Without a terminal nothing limits the width.
UNLIMITED_WIDTH = 100_000
NARROWEST_COLUMN = 8


class Rows(Protocol):
    """A table that is read once, as a `tasks.query.QueryResult` is."""

    @property
    def schema(self) -> pa.Schema: ...

    @property
    def columns(self) -> Sequence[str]: ...

    def batches(self) -> Iterable[pa.RecordBatch]: ...


def write_result(result: Rows, form: Format, out: BinaryIO, *, terminal: bool) -> None:
    """Writes all rows of `result` to `out`."""
    if form is Format.PARQUET and terminal:
        raise UserError("Parquet is no text for a terminal: add --to FILE, or send the output into a file")
    if form is Format.TABLE:
        _write_table(result, out, terminal)
    else:
        _WRITERS[form](result, out)


def _write_table(result: Rows, out: BinaryIO, terminal: bool) -> None:
    text = io.TextIOWrapper(out, encoding="utf-8", write_through=True)
    console = Console(file=text, width=None if terminal else UNLIMITED_WIDTH, force_terminal=terminal or None)
    rows: list[list[str]] = []
    total = 0
    for batch in result.batches():
        total += batch.num_rows
        rows += [[_cell(value) for value in row] for row in _rows(batch.slice(0, max(0, TABLE_ROWS - len(rows))))]
    table = _as_table(result.schema, rows)
    if len(result.columns) * NARROWEST_COLUMN <= console.width:
        console.print(table)
    else:
        for row in rows:
            console.print(_as_record(result.columns, row))
    if total > len(rows):
        console.print(f"the first {len(rows):,} of {total:,} rows; --format csv gives all")
    text.detach()


def _as_table(schema: pa.Schema, rows: list[list[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for field in schema:
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
        table.add_column(as_text(field.name), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(as_text, row))
    return table


def _as_record(columns: Sequence[str], row: Sequence[str]) -> Table:
    """One row as lines of name and value, where a terminal is too narrow for columns."""
    record = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    record.add_column()
    record.add_column(overflow="fold")
    for name, value in zip(columns, row, strict=True):
        record.add_row(as_text(name), as_text(value))
    return record


def _write_csv(result: Rows, out: BinaryIO) -> None:
    text = io.TextIOWrapper(out, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(result.columns)
    for batch in result.batches():
        writer.writerows([_csv_cell(value) for value in row] for row in _rows(batch))
    text.detach()


def _write_json(result: Rows, out: BinaryIO) -> None:
    separator = "["
    for batch in result.batches():
        for row in _rows(batch):
            record = dict(zip(result.columns, map(_json_value, row), strict=True))
            out.write(f"{separator}{json.dumps(record, ensure_ascii=False, default=text_of)}".encode())
            separator = ",\n "
    out.write(b"[]\n" if separator == "[" else b"]\n")


def _write_parquet(result: Rows, out: BinaryIO) -> None:
    with pq.ParquetWriter(out, result.schema) as writer:
        for batch in result.batches():
            writer.write_batch(batch)


_WRITERS: dict[Format, Callable[[Rows, BinaryIO], None]] = {
    Format.CSV: _write_csv,
    Format.JSON: _write_json,
    Format.PARQUET: _write_parquet,
}


def _rows(batch: pa.RecordBatch) -> Any:
    # By column, because two columns of a query may have one name.
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


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_cell(item)}" for key, item in value.items())
    return ", ".join(map(_cell, value)) if isinstance(value, list) else text_of(value)


def _csv_cell(value: Any) -> str:
    return "" if value is None else text_of(value)


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    return list(map(_json_value, value)) if isinstance(value, list) else value
