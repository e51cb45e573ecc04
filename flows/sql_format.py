"""The forms in which `trunkline sql` writes its answer."""

from enum import StrEnum
from pathlib import Path


class Format(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def choose_format(asked: Format | None, to: Path | None) -> Format:
    """The format asked for, else the one that the file's name tells, else a table."""
    if asked is not None:
        return asked
    suffix = to.suffix.removeprefix(".") if to is not None else ""
    return Format(suffix) if suffix in {"csv", "json", "parquet"} else Format.TABLE
