"""JSONL files: their columns are the keys of all lines, and a line that lacks one has a NULL there."""

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from engine.errors import UserError
from tasks.job.job_source import Source
from tasks.source.cells import is_utf8
from tasks.source.text_file import read_lines

# A column's value is its JSON text.
Row = dict[str, str]


def read_columns(files: Sequence[Path], source: Source, wanted: Collection[str]) -> tuple[str, ...]:
    """The keys of the first lines, until all that are `wanted` were met: of all lines, where one is nowhere."""
    columns: dict[str, None] = {}
    missing = set(wanted)
    for path in files:
        for line in _objects(path, source):
            if line.keys() - columns.keys():
                columns |= dict.fromkeys(filter(is_utf8, line))  # no job can name another
                missing -= line.keys()
            if not missing:
                return tuple(columns)
    if not columns:
        raise UserError(f"source.jsonl: {files[0]}{' and the other files' * (len(files) > 1)}: no line has a key")
    return tuple(columns)


def read_rows(path: Path, source: Source, columns: Sequence[str]) -> Iterator[Row]:
    for line in _objects(path, source):
        yield {key: json.dumps(line[key]) for key in columns if line.get(key) is not None}


def _objects(path: Path, source: Source) -> Iterator[dict[str, object]]:
    for number, line in enumerate(read_lines(path, source), start=1):
        if line.strip():
            yield _parse(path, number, line)


def _parse(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"source.jsonl: {path} line {number} is not a JSON object; each line has to be one")
    return value
