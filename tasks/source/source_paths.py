"""Where a source's files are: relative paths start at the working directory, else at the job file's folder."""

import os
from glob import escape, glob
from pathlib import Path

from engine.errors import UserError
from tasks.job.job_source import Source


def find_files(source: Source) -> tuple[Path, ...]:
    """The files of a Parquet, CSV or JSONL source, in the order of their names. Raises UserError for none."""
    pattern = os.path.expanduser(getattr(source, source.kind))
    for place in _places(source, pattern):
        found = glob(os.path.join(escape(place), pattern), recursive=True)
        files = tuple(sorted(path for name in found if (path := Path(name)).is_file()))
        if files:
            return files
    raise UserError(f"source.{source.kind}: no file matches {pattern} ({_looked(source, pattern)})")


def find_database(source: Source) -> Path:
    """The file of a DuckDB source. Raises UserError where it is not there."""
    assert source.duckdb is not None
    name = os.path.expanduser(source.duckdb.database)
    for place in _places(source, name):
        path = Path(place, name).absolute()
        if path.is_file():
            return path
    raise UserError(f"source.duckdb.database: no file {name} ({_looked(source, name)})")


def _places(source: Source, path: str) -> list[str]:
    """ "" is the working directory, and keeps a path as it was given."""
    return ["", source.folder] if source.folder is not None and not os.path.isabs(path) else [""]


def _looked(source: Source, path: str) -> str:
    places = dict.fromkeys(os.path.abspath(place) for place in _places(source, path))
    return f"looked from {' and from '.join(places)}"
