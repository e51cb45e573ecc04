"""A source's rows in bounded batches: cells for prompts, texts for ids, arrays for what the results carry."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from engine.errors import UserError
from tasks.source import parquet_source
from tasks.source.cells import CellOrError, cells, is_utf8, text_of
from tasks.source.kept import as_kept, replaced
from tasks.source.row_error import RowError
from tasks.source.text_source import JSON_FIELD


@dataclass(frozen=True, slots=True)
class SourceBatch:
    """Rows `first_row`, `first_row + 1`, ... of the source. Rows count from 0 over all files."""

    first_row: int
    data: pa.RecordBatch

    @property
    def num_rows(self) -> int:
        return int(self.data.num_rows)

    def values(self, column: str) -> list[CellOrError]:
        """A cell for each row; what is not UTF-8 in a text comes as lone surrogates."""
        values = cells(self.data.column(column))
        if not is_json(self.data.schema.field(column)):
            return values
        return [json.loads(text) if isinstance(text, str) else None for text in values]

    def ids(self, column: str) -> list[str]:
        """Texts. Raises UserError for a NULL, a list or a struct, or for a text that is not UTF-8."""
        return [self._id(column, row, value) for row, value in enumerate(self.values(column), start=self.first_row)]

    def custom_ids(self, column: str | None) -> list[str]:
        """The rows' names in the results: `ids`, or their positions where there is no column of ids."""
        if column is not None:
            return self.ids(column)
        return [str(row) for row in range(self.first_row, self.first_row + self.num_rows)]

    def take(self, first: int, rows: int) -> "SourceBatch":
        """Rows of the batch, counted from its own first."""
        return SourceBatch(self.first_row + first, self.data.slice(first, rows))

    def choose(self, rows: Sequence[int]) -> "SourceBatch":
        """These rows of the batch, counted from its own first and rising; a row's number in the source is lost."""
        return self if len(rows) == self.num_rows else SourceBatch(self.first_row, self.data.take(pa.array(rows)))

    def _id(self, column: str, row: int, value: CellOrError) -> str:
        if value is None:
            raise UserError(f"source.id: column {column!r} is NULL in row {row}; every row needs an id")
        if isinstance(value, RowError):
            raise UserError(f"source.id: column {column!r} has no text in row {row}: {value.message}")
        if isinstance(value, list | dict):
            raise UserError(f"source.id: column {column!r} is a list or an object in row {row}; an id is one value")
        text = text_of(value)
        if not is_utf8(text):
            raise UserError(f"source.id: column {column!r} is not valid UTF-8 in row {row}")
        return text

    def kept(self, column: str, kind: pa.DataType) -> pa.Array:
        """An array of `kept_type`; what is not UTF-8 is shown with replacement characters."""
        if not is_json(self.data.schema.field(column)):
            return as_kept(self.data.column(column), kind)
        texts = [None if value is None else text_of(value) for value in self.values(column)]
        return pa.array([None if text is None else replaced(text) for text in texts], kind)


def read_batches(files: Sequence[Path], columns: Sequence[str]) -> Iterator[SourceBatch]:
    """Of Parquet files, a snapshot's or the source's own."""
    return number_rows(parquet_source.read_batches(files, columns))


def number_rows(batches: Iterator[pa.RecordBatch]) -> Iterator[SourceBatch]:
    row = 0
    for data in batches:
        yield SourceBatch(row, data)
        row += data.num_rows


def is_json(field: pa.Field) -> bool:
    return bool(field.metadata) and JSON_FIELD.items() <= field.metadata.items()
