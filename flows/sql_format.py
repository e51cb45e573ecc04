"""The forms in which `trunkline sql` writes its answer."""

from enum import StrEnum
from pathlib import Path

from engine.errors import UserError


class Format(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"
    XLSX = "xlsx"
    DUCKDB = "duckdb"


# A text table is for reading: it is cut after a thousand rows.
_ENDINGS = {f".{form}": form for form in Format if form is not Format.TABLE} | {".txt": Format.TABLE}


def choose_format(asked: Format | None, to: Path | None) -> Format:
    """The format asked for, else the one that the file's ending says; a table where there is no file.

    Raises UserError for an ending that says none.
    """
    if asked is not None:
        return asked
    if to is None:
        return Format.TABLE
    form = _ENDINGS.get(to.suffix.lower())
    if form is None:
        said = f"{to.suffix} is not written" if to.suffix else "has no ending"
        raise UserError(f"--to {to}: {said}; end it in {', '.join(_ENDINGS)}, or say --format")
    return form
