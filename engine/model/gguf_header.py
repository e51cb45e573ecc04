"""The keys and values that a GGUF file begins with; gguf's own reader takes ten seconds for a large vocabulary.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from pathlib import Path
from typing import Any, BinaryIO

from engine.errors import UserError

Value = int | float | bool | str | None

# struct's letter of each scalar type, by its number; the others are texts and arrays.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


def read_header(path: Path) -> dict[str, Value]:
    """Every key's value, None for an array. Raises UserError for a file that is not whole, or not GGUF."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ValueError("its first bytes are others'")
            version, _, num_keys = _unpack(file, "IQQ")
            if version not in (2, 3):
                raise ValueError(f"its version {version} is not 2 or 3")
            return dict(_pair(file) for _ in range(num_keys))
    except (OSError, ValueError, OverflowError, MemoryError, RecursionError) as problem:
        raise UserError(f"model.path: {path} is not a GGUF file ({problem})") from None


def _pair(file: BinaryIO) -> tuple[str, Value]:
    key = _text(file).decode("utf-8", "replace")
    return key, _value(file, *_unpack(file, "I"))


def _value(file: BinaryIO, kind: int) -> Value:
    if kind == _TEXT:
        return _text(file).decode("utf-8", "replace")
    if kind == _ARRAY:
        _skip_array(file)
        return None
    if kind not in _SCALARS:
        raise ValueError(f"a value has the unknown type {kind}")
    value: Value = _unpack(file, _SCALARS[kind])[0]
    return value


def _skip_array(file: BinaryIO) -> None:
    kind, length = _unpack(file, "IQ")
    if kind in _SCALARS:
        file.seek(length * struct.calcsize(_SCALARS[kind]), 1)
        return
    for _ in range(length):
        _value(file, kind)


def _text(file: BinaryIO) -> bytes:
    (length,) = _unpack(file, "Q")
    text = file.read(length)
    if len(text) != length:
        raise ValueError("it ends within a text")
    return text


def _unpack(file: BinaryIO, letters: str) -> tuple[Any, ...]:
    """Little-endian, without padding."""
    form = f"<{letters}"
    size = struct.calcsize(form)
    found = file.read(size)
    if len(found) != size:
        raise ValueError("it ends within its header")
    return struct.unpack(form, found)
