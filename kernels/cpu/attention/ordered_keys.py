"""Keys and values as `ordered_attention` multiplies them: in float32, whatever they are kept in."""

from typing import Any

import numpy as np

from kernels.cpu.attention.attention_work import LN2
from kernels.cpu.attention.byte_kv import row_size
from kernels.cpu.attention.shared_segment import widen
from kernels.cpu.language.jit import njit
from kernels.cpu.language.openmp import exp, float32_at, int8_at


def make_widen(kind: str) -> Any:
    """For numba: `f(rows, first, count, dim, is_value, out)`: the address of `count` rows in float32, from `first` on.

    `rows` is the address of a segment's keys or values; `out` has room for what lies there in fewer bits.
    """

    @njit(error_model="numpy", inline="always")
    def as_they_are(rows: int, first: int, count: int, dim: int, is_value: bool, out: Any) -> Any:
        return rows + 4 * first * dim

    @njit(error_model="numpy")
    def of_pairs(rows: int, first: int, count: int, dim: int, is_value: bool, out: Any) -> Any:
        widen(rows + 2 * first * dim, count * dim, out.ctypes.data)
        return out.ctypes.data

    @njit(error_model="numpy")
    def of_bytes(rows: int, first: int, count: int, dim: int, is_value: bool, out: Any) -> Any:
        size = row_size(dim, 1)
        for key in range(count):
            row, made = rows + (first + key) * size, out[key * dim : (key + 1) * dim]
            bytes_, scale = int8_at(row, dim), float32_at(row + dim, 1)[0]
            if is_value:
                scale = exp(scale * np.float32(LN2))
                for d in range(dim):
                    made[d] = np.float32(bytes_[d]) * scale
            else:
                for d in range(dim):
                    made[d] = np.float32((np.int32(bytes_[d]) & np.int32(255)) - np.int32(128)) * scale
        return out.ctypes.data

    return {"float32": as_they_are, "pairs": of_pairs, "bytes": of_bytes}[kind]
