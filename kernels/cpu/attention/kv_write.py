"""Puts a step's keys and values where attention reads them: in slots of the cache, or in the step's own rows."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.attention import byte_kv
from kernels.cpu.attention.byte_kv import row_size, write_key, write_value
from kernels.cpu.language.arguments import reader
from kernels.cpu.language.jit import njit
from kernels.cpu.language.openmp import Loop, Recording, bfloat16_bits, float32_at, int64_at, share, uint16_at
from kernels.kv_format import BFLOAT16, FLOAT32, INT8_ROWS, kv_format_of

KVPair = tuple[Tensor, Tensor]
# What is made, and the cache's format, where the write is compiled.
KINDS = {
    (torch.float32, FLOAT32),
    (torch.float32, BFLOAT16),
    (torch.bfloat16, BFLOAT16),
    (torch.float32, INT8_ROWS),
}


class KVWriteArguments(NamedTuple):
    key: Tensor
    value: Tensor
    slots: Tensor
    cache_keys: Tensor
    cache_values: Tensor
    own_keys: Tensor
    own_values: Tensor
    rows: int
    kv_heads: int
    dim: int
    row_stride: int  # of what is made, in elements
    head_stride: int
    cache_head: int  # bytes between heads
    own_head: int
    per_word: int
    source_is_bfloat16: bool


_read = reader(KVWriteArguments)


def write_kv(made: KVPair, slots: Tensor, cache: KVPair, own: KVPair) -> None:
    """Keys and values `made` (kv_heads, rows, dim), of row r, go to slot `slots[r]` of `cache`, or to row r of `own`.

    slots (rows,) in int64, -1 for a row that is read in this step alone. cache, own (kv_heads, slots, dim) of one
    dtype, or rows of `kernels.cpu.attention.byte_kv` (kv_heads, slots, dim + 4), which are made of float32.
    """
    (key, value), kept = made, kv_format_of(cache[0].dtype)
    compiled = key.device.type == "cpu" and (key.dtype, kept) in KINDS and LOOP.available
    if not compiled or key.stride(2) != 1 or key.stride() != value.stride():
        write_kv_reference(made, slots, cache, own)
        return
    kv_heads, rows, dim = key.shape
    for target in (*cache, *own):
        assert target.stride()[1:] == (kept.row_width(dim), 1), target.stride()
    LOOP(
        key=key,
        value=value,
        slots=slots,
        cache_keys=cache[0],
        cache_values=cache[1],
        own_keys=own[0],
        own_values=own[1],
        rows=rows,
        kv_heads=kv_heads,
        dim=dim,
        row_stride=key.stride(1),
        head_stride=key.stride(0),
        cache_head=kept.itemsize * cache[0].stride(0),
        own_head=kept.itemsize * own[0].stride(0),
        per_word=4 // kept.itemsize,
        source_is_bfloat16=key.dtype == torch.bfloat16,
    )


def write_kv_reference(made: KVPair, slots: Tensor, cache: KVPair, own: KVPair) -> None:
    """`write_kv` by its definition."""
    kept, passing = torch.nonzero(slots >= 0)[:, 0], torch.nonzero(slots < 0)[:, 0]
    if kv_format_of(cache[0].dtype) == INT8_ROWS:
        made = byte_kv.key_rows(made[0].float()), byte_kv.value_rows(made[1].float())
    for source, target, aside in zip(made, cache, own, strict=True):
        target[:, slots[kept]] = source[:, kept].to(target.dtype)
        aside[:, passing] = source[:, passing].to(aside.dtype)


def _write(arguments: Any) -> None:
    a = _read(arguments)
    dim, per_word = a.dim, a.per_word
    slots, size = int64_at(a.slots, a.rows), row_size(dim, 4 // per_word)
    first, last = share(a.rows)
    for row in range(first, last):
        kept = slots[row] >= 0
        for head in range(a.kv_heads):
            start = row * a.row_stride + head * a.head_stride
            at = head * a.cache_head + slots[row] * size if kept else head * a.own_head + row * size
            key, value = (a.cache_keys + at, a.cache_values + at) if kept else (a.own_keys + at, a.own_values + at)
            if per_word == 4:
                write_key(a.key + 4 * start, dim, key)
                write_value(a.value + 4 * start, dim, value)
            else:
                _copy(a.key, start, dim, a.source_is_bfloat16, per_word, key)
                _copy(a.value, start, dim, a.source_is_bfloat16, per_word, value)


@njit(error_model="numpy")
def _copy(source: int, start: int, dim: int, source_is_bfloat16: int, per_word: int, target: int) -> None:
    """`dim` elements from element `start` on, as they are or rounded to bfloat16; addresses."""
    if source_is_bfloat16:
        halves_in, halves = uint16_at(source + 2 * start, dim), uint16_at(target, dim)
        for i in range(dim):
            halves[i] = halves_in[i]
    elif per_word == 2:
        floats, halves = float32_at(source + 4 * start, dim), uint16_at(target, dim)
        for i in range(dim):
            halves[i] = np.uint16(bfloat16_bits(floats[i]))
    else:
        floats, kept_floats = float32_at(source + 4 * start, dim), float32_at(target, dim)
        for i in range(dim):
            kept_floats[i] = floats[i]


LOOP = Loop(_write, KVWriteArguments)


def reslot(recording: Recording, slots: Tensor) -> None:
    """Makes a write that was recorded go to other slots, of as many rows."""
    recording.change(LOOP, slots=slots)
