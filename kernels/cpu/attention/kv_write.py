"""Puts a step's keys and values where attention reads them: in slots of the cache, or in the step's own rows."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.attention import byte_kv
from kernels.cpu.attention.byte_kv import row_size, write_key, write_value
from kernels.cpu.language.openmp import Loop, Recording, float32_at, int64_at, narrow, share, uint16_at, words
from kernels.kv_format import BFLOAT16, FLOAT32, INT8_ROWS, kv_format_of

KVPair = tuple[Tensor, Tensor]
# What is made, and the cache's format, where the write is compiled.
KINDS = {
    (torch.float32, FLOAT32),
    (torch.float32, BFLOAT16),
    (torch.bfloat16, BFLOAT16),
    (torch.float32, INT8_ROWS),
}


def write_kv(made: KVPair, slots: Tensor, cache: KVPair, own: KVPair) -> None:
    """Keys and values `made` (kv_heads, rows, dim), of row r, go to slot `slots[r]` of `cache`, or to row r of `own`.

    slots (rows,) in int64, -1 for a row that is read in this step alone. cache, own (kv_heads, slots, dim) of one
    dtype, or rows of `kernels.cpu.attention.byte_kv` (kv_heads, slots, dim + 4), which are made of float32.
    """
    (key, value), kept = made, kv_format_of(cache[0].dtype)
    compiled = key.device.type == "cpu" and (key.dtype, kept) in KINDS and _loop.available
    if not compiled or key.stride(2) != 1 or key.stride() != value.stride():
        write_kv_reference(made, slots, cache, own)
        return
    kv_heads, rows, dim = key.shape
    each = 4 // kept.itemsize
    for target in (*cache, *own):
        assert target.stride()[1:] == (kept.row_width(dim), 1), target.stride()
    strides = (key.stride(1), key.stride(0), *(target.itemsize * target.stride(0) for target in (cache[0], own[0])))
    _loop(*made, slots, *cache, *own, rows, kv_heads, dim, *strides, each, int(key.dtype == torch.bfloat16))


def write_kv_reference(made: KVPair, slots: Tensor, cache: KVPair, own: KVPair) -> None:
    """`write_kv` by its definition."""
    kept, passing = torch.nonzero(slots >= 0)[:, 0], torch.nonzero(slots < 0)[:, 0]
    if kv_format_of(cache[0].dtype) == INT8_ROWS:
        made = byte_kv.key_rows(made[0].float()), byte_kv.value_rows(made[1].float())
    for source, target, aside in zip(made, cache, own, strict=True):
        target[:, slots[kept]] = source[:, kept].to(target.dtype)
        aside[:, passing] = source[:, passing].to(aside.dtype)


def _write(arguments: Any) -> None:
    a = words(arguments, 16)
    rows, kv_heads, dim, row_stride, head_stride, cache_head, own_head = a[7], a[8], a[9], a[10], a[11], a[12], a[13]
    each, from_narrow = a[14], a[15]
    slots, size = int64_at(a[2], rows), row_size(dim, 4 // each)
    first, last = share(rows)
    for row in range(first, last):
        kept = slots[row] >= 0
        for head in range(kv_heads):
            start = row * row_stride + head * head_stride
            to = head * cache_head + slots[row] * size if kept else head * own_head + row * size
            for which in range(2):
                source, target = a[which], (a[3 + which] if kept else a[5 + which]) + to
                if each == 4 and which == 0:
                    write_key(source + 4 * start, dim, target)
                elif each == 4:
                    write_value(source + 4 * start, dim, target)
                elif from_narrow:
                    halves_in, halves = uint16_at(source + 2 * start, dim), uint16_at(target, dim)
                    for i in range(dim):
                        halves[i] = halves_in[i]
                elif each == 2:
                    floats, halves = float32_at(source + 4 * start, dim), uint16_at(target, dim)
                    for i in range(dim):
                        halves[i] = np.uint16(narrow(floats[i]))
                else:
                    floats, kept_floats = float32_at(source + 4 * start, dim), float32_at(target, dim)
                    for i in range(dim):
                        kept_floats[i] = floats[i]


_loop = Loop(_write)


def reslot(recording: Recording, slots: Tensor) -> None:
    """Makes a write that was recorded go to other slots, of as many rows."""
    for call in recording.words_of(_loop):
        call[2] = slots.data_ptr()
