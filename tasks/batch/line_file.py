"""A batch file's lines, one at a time, however long the file or a line of it is."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from engine.errors import UserError

# More than any context holds; what is longer is read past in pieces of this size.
LONGEST_LINE = 64 * 2**20
_MARK = b"\xef\xbb\xbf"


def read_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Each line's number, from 1, and its bytes; None for one that is too long. Empty lines are passed over."""
    try:
        with _open(path) as file:
            number = 0
            while line := file.readline(LONGEST_LINE):
                number += 1
                if number == 1:
                    line = line.removeprefix(_MARK)
                if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                    _skip(file)
                    yield number, None
                elif line.strip():
                    yield number, line
    except (EOFError, OSError, zlib.error) as problem:
        raise UserError(f"{path}: cannot be read ({problem})") from None


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _skip(file: IO[bytes]) -> None:
    """To the end of the line."""
    while (piece := file.readline(LONGEST_LINE)) and not piece.endswith(b"\n"):
        pass
