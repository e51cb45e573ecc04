"""Arrays and paths among plain data, for msgspec's encoders and decoders."""

import os
from pathlib import Path
from typing import Any, get_origin

import numpy as np


def encode_hook(value: object) -> object:
    """Raises NotImplementedError for what is no plain data."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return os.fsencode(value)  # a file's name need not be text
    raise NotImplementedError(f"{type(value)} is no plain data")


def decode_hook(kind: type, value: Any) -> object:
    """Raises NotImplementedError for what is no plain data."""
    if get_origin(kind) is np.ndarray:
        dtype, shape, content = value
        return np.ndarray(tuple(shape), np.dtype(dtype), bytearray(content))
    if kind is Path:
        return Path(os.fsdecode(value))
    raise NotImplementedError(f"{kind} is no plain data")
