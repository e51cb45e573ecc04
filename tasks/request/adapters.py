"""The adapter that each row names."""

from tasks.source.cells import is_utf8, text_of
from tasks.source.row_error import BAD_VALUE, RowError
from tasks.source.source_rows import SourceBatch


def read_adapters(batch: SourceBatch, column: str | None) -> list[str | RowError | None]:
    """A name for each row, or None for the model's own weights: where the cell is NULL or empty, or no column is read.

    A cell that is no text is the row's BAD_VALUE.
    """
    if column is None:
        return [None] * batch.num_rows
    return [_name(value, column) for value in batch.values(column)]


def _name(value: object, column: str) -> str | RowError | None:
    if isinstance(value, RowError):
        return RowError(value.type, f"column {column!r}: {value.message}")
    if isinstance(value, list | dict):
        return RowError(BAD_VALUE, f"column {column!r}: an adapter is named by one text")
    name = "" if value is None else text_of(value)
    if not is_utf8(name) or "\x00" in name:
        return RowError(BAD_VALUE, f"column {column!r}: the adapter's name is not valid UTF-8")
    return name or None
