"""Where a source's files are: relative paths start at the working directory, else at the job file's folder."""

import os
from glob import escape, glob
from pathlib import Path

from engine.errors import UserError
from tasks.job.job_source import Source

# Its address may hold a password.
NOT_HERE = "an address ({}://...) is no file on this machine; copy it to Parquet first: docs/job.md"


def find_files(source: Source) -> tuple[Path, ...]:
    """The files of a Parquet, CSV or JSONL source, in the order of their names. Raises UserError for none."""
    pattern = os.path.expanduser(getattr(source, source.kind))
    for place in _places(source, pattern):
        found = glob(os.path.join(escape(place), pattern), recursive=True)
        files = tuple(sorted(path for name in found if (path := Path(name)).is_file()))
        if files:
            return files
    raise UserError(f"source.{source.kind}: {_why_none(source, pattern)}")


def _why_none(source: Source, pattern: str) -> str:
    if "://" in pattern:
        return NOT_HERE.format(pattern.partition("://")[0])
    if any(Path(place, pattern).is_dir() for place in _places(source, pattern)):
        return f"{pattern} is a folder; write {os.path.join(pattern, '*.' + str(source.kind))} for the files in it"
    return f"no file matches {pattern} ({_looked(source, pattern)})"


def find_database(source: Source) -> Path:
    """The file of a DuckDB source. Raises UserError where it is not there."""
    assert source.duckdb is not None
    name = os.path.expanduser(source.duckdb.database)
    for place in _places(source, name):
        path = Path(place, name).absolute()
        if path.is_file():
            return path
    why = NOT_HERE.format(name.partition("://")[0]) if "://" in name else f"no file {name} ({_looked(source, name)})"
    raise UserError(f"source.duckdb.database: {why}")


def _places(source: Source, path: str) -> list[str]:
    """ "" is the working directory, and keeps a path as it was given."""
    return ["", source.folder] if source.folder is not None and not os.path.isabs(path) else [""]


def _looked(source: Source, path: str) -> str:
    places = dict.fromkeys(os.path.abspath(place) for place in _places(source, path))
    return f"looked from {' and from '.join(places)}"
