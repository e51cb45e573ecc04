"""Query results as a table, CSV, JSON, Parquet or an Excel workbook."""

import csv
import io
import json
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from engine.errors import UserError
from flows.result_rows import Rows, rows_of
from flows.sql_format import Format
from flows.text_table import write_table
from flows.workbook import write_workbook
from tasks.source.cells import text_of

_NO_TEXT = {Format.PARQUET: "Parquet", Format.XLSX: "a workbook"}


def write_result(result: Rows, form: Format, out: BinaryIO, *, terminal: bool) -> None:
    """Writes all rows of `result` to `out`. Raises UserError for what is no text where `out` is a terminal."""
    if terminal and form in _NO_TEXT:
        raise UserError(f"{_NO_TEXT[form]} is no text for a terminal: add --to FILE, or send the output into a file")
    match form:
        case Format.TABLE:
            write_table(result, out, terminal=terminal)
        case Format.CSV:
            _write_csv(result, out)
        case Format.JSON:
            _write_json(result, out)
        case Format.PARQUET:
            _write_parquet(result, out)
        case Format.XLSX:
            write_workbook(result, out)
        case Format.DUCKDB:
            raise UserError("--format duckdb: a database is a file of its own: add --to FILE")


def _write_csv(result: Rows, out: BinaryIO) -> None:
    text = io.TextIOWrapper(out, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(result.columns)
    for batch in result.batches():
        writer.writerows([_csv_cell(value) for value in row] for row in rows_of(batch))
    text.detach()


def _write_json(result: Rows, out: BinaryIO) -> None:
    separator = "["
    for batch in result.batches():
        for row in rows_of(batch):
            out.write(f"{separator}{_json(dict(zip(result.columns, row, strict=True)))}".encode())
            separator = ",\n "
    out.write(b"[]\n" if separator == "[" else b"]\n")


def _write_parquet(result: Rows, out: BinaryIO) -> None:
    with pq.ParquetWriter(out, result.schema) as writer:
        for batch in result.batches():
            writer.write_batch(batch)


def _csv_cell(value: Any) -> str:
    return "" if value is None else text_of(value)


def _json(value: Any) -> str:
    """JSON has neither NaN nor infinity, but numbers of any length: a decimal's digits are all there."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):  # something in it is none of Python's JSON
        pass
    if isinstance(value, dict):
        pairs = (f"{json.dumps(str(key), ensure_ascii=False)}: {_json(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_json, value))}]"
    return "null" if isinstance(value, float) else text_of(value)
