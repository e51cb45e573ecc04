"""Lines of a text file, in whatever encoding: what cannot be decoded costs its own row and no other."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from engine.errors import UserError
from tasks.job.job_source import Source

# Longer ones first: UTF-32's begins with UTF-16's.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_MARK = "\ufeff"
# What files begin with.
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zX": "xz",
    b"PK\x03\x04": "zip",
}
_ESCAPE = "trunkline-escape"


def read_lines(path: Path, source: Source) -> Iterator[str]:
    """Each with its end, without a byte order mark. Raises UserError for a file that cannot be read."""
    encoding = source.encoding or _guess(path, source.kind)
    errors = "surrogateescape" if encoding == "utf-8" else _ESCAPE
    try:
        with _open(path) as file, io.TextIOWrapper(file, encoding, errors, newline="") as lines:
            for number, line in enumerate(lines):
                yield line.removeprefix(_MARK) if number == 0 else line
    except (EOFError, OSError, UnicodeError, zlib.error) as problem:
        raise UserError(f"source.{source.kind}: {path} cannot be read ({problem})") from None


def to_bytes(text: str | None) -> bytes | None:
    """UTF-8, but for what the file's own encoding could not read, which no encoding can."""
    if text is None:
        return None
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", _ESCAPE)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _guess(path: Path, kind: str) -> str:
    try:
        with _open(path) as file:
            start = file.read(4)
    except (EOFError, OSError, zlib.error) as problem:
        raise UserError(f"source.{kind}: {path} cannot be read ({problem})") from None
    for magic, program in _COMPRESSED.items():
        if start.startswith(magic):
            cure = "name it .gz" if program == "gzip" else "decompress it, or use gzip"
            raise UserError(f"source.{kind}: {path} is compressed by {program}, which is not read; {cure}")
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            return encoding
    # No table begins with a NUL, or with a character of its first column's name and a NUL.
    if b"\0" in start:
        order = "be" if start[0] == 0 else "le"
        raise UserError(f"source.{kind}: {path} looks like UTF-16; set source.encoding: utf-16-{order}")
    return "utf-8"


def _escape(problem: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(problem, UnicodeDecodeError):
        return "\udcff", problem.end
    if isinstance(problem, UnicodeEncodeError):
        return b"\xff", problem.end
    raise problem


codecs.register_error(_ESCAPE, _escape)
