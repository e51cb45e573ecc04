"""CSV files: a header that is the same in all of them, and rows of as many fields."""

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from engine.errors import UserError
from tasks.job.job_source import Source
from tasks.source.cells import is_utf8
from tasks.source.text_file import read_lines

Row = dict[str, str]

_DELIMITERS = ",;\t|"
_SAMPLE_LINES, _SAMPLE_CHARACTERS = 200, 1_000_000
# Excel's own way to name the delimiter, in a line before the header.
_NAMED = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file's records; `skipped` lines came before them."""

    lines: Iterator[str]
    delimiter: str
    skipped: int


def read_columns(files: Sequence[Path], source: Source) -> tuple[str, ...]:
    """The header's. A file without a byte is skipped."""
    headers = {path: header for path in files if (header := _read_header(path, source))}
    if not headers:
        raise UserError(f"source.csv: {files[0]} is empty; its first line must name the columns")
    first = next(iter(headers))
    for path, header in headers.items():
        if header != headers[first]:
            raise UserError(f"source.csv: the header of {path} differs from that of {first.name}")
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            raise UserError(f"source.csv: {path} has column {twice[0]!r} twice")
        if not all(map(is_utf8, header)):
            raise UserError(f"source.csv: the header of {path} is not UTF-8; set source.encoding, such as cp1252")
    return tuple(headers[first])


def read_rows(path: Path, source: Source) -> Iterator[Row]:
    """An empty field is NULL, as a column that is not there is."""
    records = _records(path, source)
    header = next(records, [])
    for number, fields in enumerate(records, start=1):
        if not fields:  # a NULL where there is one column, as DuckDB and others write it; else no row
            if len(header) == 1:
                yield {}
            continue
        if len(fields) != len(header):
            raise UserError(
                f"source.csv: {path} row {number} has {len(fields)} fields, its header {len(header)}; a field with "
                "the delimiter in it needs quotes, and source.delimiter names another"
            )
        yield {name: field for name, field in zip(header, fields, strict=True) if field}


def _read_header(path: Path, source: Source) -> list[str]:
    return next(_records(path, source), [])


def _records(path: Path, source: Source) -> Iterator[list[str]]:
    """Fields of any length."""
    csv.field_size_limit(sys.maxsize)
    opened = _open(path, source)
    rows = csv.reader(opened.lines, delimiter=opened.delimiter, strict=True)
    try:
        yield from rows
    except csv.Error as problem:
        cure = "; a quote is opened and never closed" if "end of data" in str(problem) else ""
        raise UserError(f"source.csv: {path} line {rows.line_num + opened.skipped}: {problem}{cure}") from None


def _open(path: Path, source: Source) -> _Opened:
    lines = read_lines(path, source)
    first = list(islice(lines, 1))
    named = _NAMED.fullmatch(first[0]) if first else None
    if named is not None:
        return _Opened(lines, source.delimiter or named[1], 1)
    if source.delimiter is not None:
        return _Opened(chain(first, lines), source.delimiter, 0)
    sample = _sample(first, lines)
    delimiters = "\t,;|" if ".tsv" in path.suffixes else _DELIMITERS
    return _Opened(chain(sample, lines), max(delimiters, key=lambda one: _fitness(sample, one)), 0)


def _sample(first: list[str], lines: Iterator[str]) -> list[str]:
    sample = list(first)
    characters = sum(map(len, first))
    while len(sample) < _SAMPLE_LINES and characters < _SAMPLE_CHARACTERS and (line := next(lines, None)) is not None:
        sample.append(line)
        characters += len(line)
    return sample


def _fitness(sample: Sequence[str], delimiter: str) -> tuple[bool, float, int]:
    """How well records of this delimiter agree: some header's fields in the most rows, then the most fields.

    A delimiter is found by what stands outside quotes, and by every row, as a header may hold the others in its names.
    """
    records = [record for record in csv.reader(sample, delimiter=delimiter) if record]
    if not records:
        return False, 0.0, 0
    width, rows = len(records[0]), records[1:]
    share = sum(len(record) == width for record in rows) / len(rows) if rows else 1.0
    return width > 1 and share > 0, share, width
