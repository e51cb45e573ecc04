"""Hive partitions: a folder named `year=2026` gives every row below it a column."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

_NULL = "__HIVE_DEFAULT_PARTITION__"

Partition = dict[str, str | None]


def partition_of(path: Path) -> Partition:
    """The columns that the path's folders name, as texts, so that `01` stays what it is."""
    pairs = [folder.split("=", 1) for folder in path.parts[:-1] if "=" in folder]
    return {unquote(name): None if value == _NULL else unquote(value) for name, value in pairs if name}


def partition_columns(files: Sequence[Path]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for path in files for name in partition_of(path)))
