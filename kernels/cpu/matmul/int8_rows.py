"""Rows in 8 bits, behind a Hadamard transform that makes one scale a row enough.

A few channels of a language model's activations are far larger than the rest, and would leave the rest few of a row's
255 steps. So blocks of neighbours are multiplied by a Hadamard matrix, which spreads a large one over its block. The
matrix is orthogonal, so two rows that were both transformed have the product that they had (QuaRot, arXiv 2404.00456).
"""

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kernels.cpu.language.arguments import reader
from kernels.cpu.language.hadamard import MAX_BLOCK, MIN_BLOCK, hadamard_blocks, to_bytes
from kernels.cpu.language.openmp import Loop, as_float32, float32_at, int8_at, lines_of, share
from kernels.cpu.language.vectors import WIDTH

INT8_MAX = 127
# `matmul` takes several rows at once, and may read behind the last.
SPARE_ROWS = 16


class ByteRowsArguments(NamedTuple):
    values: Tensor
    out: Tensor
    scales: Tensor | None  # none where rows stay in float32
    factors: Tensor
    rows: int
    size: int
    stride: int
    width: int
    block: int
    has_norm: bool
    eps: float


_read = reader(ByteRowsArguments)


def block_size(size: int) -> int:
    """Neighbours in a block of a row of `size`: the largest power of two that divides it; 1 where that is small."""
    block = min(size & -size, MAX_BLOCK)
    return block if block >= MIN_BLOCK else 1


def hadamard_transform(values: Tensor) -> Tensor:
    """values (..., size) in float32, each block times the Hadamard matrix of its size, which is orthogonal."""
    block = block_size(values.shape[-1])
    blocks = values.reshape(-1, values.shape[-1] // block, block)
    return (blocks @ hadamard_matrix(block).to(values.device)).view_as(values)


@cache
def hadamard_matrix(size: int) -> Tensor:
    """(size, size), a power of two, symmetric and its own inverse (Sylvester's construction)."""
    made = torch.ones(1, 1)
    while len(made) < size:
        made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)])
    return made / math.sqrt(size)


def quantize_rows(values: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """values (rows, n) to int8 (rows, n) and float32 scales (rows,): transformed, they are about int8 times scale.

    With `factors` (n,) in float32 the values are multiplied by them first. The error is at most half the scale, which
    is a transformed row's largest magnitude over 127. A row that is not finite keeps a scale that is not, so that it
    ends as no answer.
    """
    values = hadamard_transform(values.float() if factors is None else values.float() * factors)
    scales = values.abs().amax(-1) / INT8_MAX if values.numel() else values.new_zeros(len(values))
    quantized = (values / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round()
    return quantized.nan_to_num(0.0).clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scales


def byte_rows(
    values: Tensor, factors: Tensor, eps: float | None = None, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """`quantize_rows` of float32 values as `matmul` takes it: bytes of which 128 is zero, a row in whole words.

    With `eps` the row is divided by its root mean square first, as `rms_norm` does it; the norm's weight is
    then one of the `factors`. It changes a row's scale alone. `out`: bytes and scales to write to, with room for
    `SPARE_ROWS` behind them.
    """
    rows, size = values.shape
    if values.dtype != torch.float32 or values.device.type != "cpu" or not LOOP.available:
        quantized, scales = quantize_rows(values, factors)
        if eps is not None:
            scales = scales * torch.rsqrt(values.float().square().mean(-1) + eps)
        made = functional.pad(quantized, (0, -size % 4)).view(torch.uint8) + 128
        return (made, scales) if out is None else (out[0].copy_(made), out[1].copy_(scales))
    assert values.stride(1) == 1
    width = -(size // -4) * 4
    if out is None:
        out = torch.empty((rows + SPARE_ROWS, width), dtype=torch.uint8)[:rows], torch.empty(rows + SPARE_ROWS)[:rows]
    quantized, scales = out
    assert quantized.shape == (rows, width)
    _run(values, factors, eps, quantized, scales)
    return quantized, scales


def hadamard_rows(values: Tensor, factors: Tensor, eps: float | None, out: Tensor) -> Tensor:
    """As `byte_rows`, but rows are not rounded: out (rows, whole words of bytes) in float32."""
    if not LOOP.available:
        norms = 1 if eps is None else torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
        made = hadamard_transform(values * factors) * norms
        return out.copy_(functional.pad(made, (0, out.shape[1] - values.shape[1])))
    assert out.is_contiguous()
    _run(values, factors, eps, out, None)
    return out


def _run(values: Tensor, factors: Tensor, eps: float | None, out: Tensor, scales: Tensor | None) -> None:
    rows, size = values.shape
    LOOP(
        values=values,
        out=out,
        scales=scales,
        factors=factors,
        rows=rows,
        size=size,
        stride=values.stride(0),
        width=out.shape[1],
        block=block_size(size),
        has_norm=eps is not None,
        eps=float(eps or 0),
    )


def _byte_rows(arguments: Any) -> None:
    a = _read(arguments)
    size, width, block, is_wide = a.size, a.width, a.block, a.scales == 0
    scales, factors = float32_at(a.scales, a.rows), float32_at(a.factors, size)
    transformed, edge = lines_of(size), lines_of(2 * WIDTH)
    into, magnitudes, squares = transformed.ctypes.data, edge[:WIDTH].view(np.int32), edge[WIDTH:]
    unit = np.float32(1) / np.sqrt(np.float32(block))
    shrink = unit / np.float32(127)
    first, last = share(a.rows)
    for row in range(first, last):
        source, target = a.values + 4 * row * a.stride, a.out + (4 if is_wide else 1) * row * width
        if block > 1:
            blocks = size // block
            hadamard_blocks(block, source, a.factors, into, blocks, magnitudes.ctypes.data, squares.ctypes.data)
        else:
            magnitudes[:], squares[:] = np.int32(0), np.float32(0)
            values, bits = float32_at(source, size), transformed.view(np.int32)
            for i in range(size):
                squares[0] += values[i] * values[i]
                transformed[i] = values[i] * factors[i]
                magnitudes[0] = max(magnitudes[0], bits[i] & np.int32(0x7FFFFFFF))
        most, square = magnitudes[0], squares[0]
        for i in range(1, WIDTH):
            most, square = max(most, magnitudes[i]), square + squares[i]
        norm = np.float32(1) / np.sqrt(square / np.float32(size) + a.eps) if a.has_norm else np.float32(1)
        if is_wide:
            wide = float32_at(target, width)
            for i in range(size):
                wide[i] = transformed[i] * (unit * norm)
            wide[size:] = np.float32(0)
            continue
        largest = as_float32(most)
        step = np.float32(127) / max(largest, np.float32(1e-37))
        if block > 1:
            to_bytes(into, step, target, size // WIDTH, 128)
        else:
            made = int8_at(target, width)
            for i in range(size):
                made[i] = np.int8(np.int32(np.rint(transformed[i] * step)) + np.int32(128))
            for i in range(size, width):
                made[i] = np.int8(-128)
        scales[row] = largest * shrink * norm


LOOP = Loop(_byte_rows, ByteRowsArguments)
