"""A query's answer for a person: columns as wide as the terminal, or a block a row where that is too narrow."""

import io
from collections.abc import Sequence
from typing import Any, BinaryIO

import pyarrow as pa
from rich import box
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Table

from flows.result_rows import Rows, rows_of
from flows.terminal_text import as_text
from tasks.source.cells import text_of

TABLE_ROWS = 1_000
# In a file nothing limits the width.
UNLIMITED_WIDTH = 100_000
# A column that is folded keeps as much; a cell on a terminal has as many lines.
FOLDED_COLUMN = 16
CELL_LINES = 6
GAP = 3


def write_table(result: Rows, out: BinaryIO, *, terminal: bool) -> None:
    """Writes the first rows, and says how many more there are, and where cells were cut."""
    text = io.TextIOWrapper(out, encoding="utf-8", write_through=True)
    console = Console(file=text, width=None if terminal else UNLIMITED_WIDTH, force_terminal=terminal or None)
    rows: list[list[str]] = []
    total = 0
    for batch in result.batches():
        total += batch.num_rows
        rows += [[_cell(value) for value in row] for row in rows_of(batch.slice(0, max(0, TABLE_ROWS - len(rows))))]
    shown = rows
    if _fits(result.columns, rows, console.width):
        widths = _widths(result.columns, rows, console.width)
        if terminal:
            shown = [[_cut(cell, width) for cell, width in zip(row, widths, strict=True)] for row in rows]
        console.print(_as_table(result.schema, widths, shown))
    else:
        for row in rows:
            console.print(_as_record(result.columns, row))
    if total > len(rows):
        console.print(f"the first {len(rows):,} of {total:,} rows; --format csv gives all")
    if shown != rows:
        console.print("cells that end in … are longer; --format csv, or --to FILE, gives all of them")
    text.detach()


def _fits(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> bool:
    """Whether each column can have what it needs, or as much as a folded one."""
    needed = [min(most, FOLDED_COLUMN) for most in _needed(columns, rows)]
    return sum(needed) + GAP * len(needed) <= width


def _needed(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Each column's widest line."""
    most = [cell_len(name) for name in columns]
    for row in rows:
        most = [max(widest, _widest_line(cell)) for widest, cell in zip(most, row, strict=True)]
    return most


def _widest_line(cell: str) -> int:
    return max(map(cell_len, cell.split("\n")))


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Columns that need less than an even share get it; what they leave goes to the others, evenly."""
    needed = _needed(columns, rows)
    left = width - GAP * len(needed)
    widths = [0] * len(needed)
    for done, place in enumerate(sorted(range(len(needed)), key=needed.__getitem__)):
        widths[place] = min(needed[place], left // (len(needed) - done))
        left -= widths[place]
    return widths


def _cut(cell: str, width: int) -> str:
    """As much as fits into a cell's lines, which are folded at `width`."""
    start = cell[: CELL_LINES * (width + 1)]
    folded = [part for line in start.split("\n") for part in chop_cells(line, max(width, 2)) or [""]]
    if start == cell and len(folded) <= CELL_LINES:
        return cell
    return "\n".join(folded[:CELL_LINES])[:-1] + "…"


def _as_table(schema: pa.Schema, widths: Sequence[int], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for field, width in zip(schema, widths, strict=True):
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
        table.add_column(
            as_text(field.name), justify="right" if number else "left", overflow="fold", max_width=max(width, 1)
        )
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


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_cell(item)}" for key, item in value.items())
    return ", ".join(map(_cell, value)) if isinstance(value, list) else text_of(value)
