"""Token ids between numpy and Arrow, without a Python object a token."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.request import TokenIds

TOKEN_LIST = pa.list_(pa.int32())
TOKEN_LISTS = pa.list_(TOKEN_LIST)


def to_list_array(rows: Sequence[TokenIds]) -> pa.Array:
    values = np.concatenate(rows) if rows else np.empty(0, np.int32)
    return pa.ListArray.from_arrays(_offsets(rows), pa.array(values, pa.int32()))


def to_lists_array(rows: Sequence[Sequence[TokenIds]]) -> pa.Array:
    return pa.ListArray.from_arrays(_offsets(rows), to_list_array([ids for row in rows for ids in row]))


def from_list_array(array: pa.Array) -> list[TokenIds]:
    """Views into one buffer; the array has no NULL."""
    values: NDArray[np.int32] = array.values.to_numpy()
    bounds = array.offsets.to_numpy().tolist()
    return [values[start:end] for start, end in pairwise(bounds)]


def from_lists_array(array: pa.Array) -> list[tuple[TokenIds, ...]]:
    """Equal rows are one object: most tables have few sets of labels."""
    inner = from_list_array(array.values)
    bounds = array.offsets.to_numpy().tolist()
    rows = (tuple(inner[start:end]) for start, end in pairwise(bounds))
    known: dict[tuple[bytes, ...], tuple[TokenIds, ...]] = {}
    return [known.setdefault(tuple(ids.tobytes() for ids in row), row) for row in rows]


def _offsets(rows: Sequence[Sequence[object] | TokenIds]) -> pa.Array:
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return pa.array(offsets)
