"""Rows in 8 bits, and what becomes of their exact products: the small passes around an int8 matmul."""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels import openmp
from kernels.openmp import FASTMATH, Loop, as_float32, exp, float32_at, int8_at, int32_at, share, words
from kernels.silu_mul import silu_mul_reference

INT8_MAX = 127


def quantize_rows(values: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(rows, n) to int8 (rows, n) and float32 scales (rows, 1), symmetric: values are about int8 times scale.

    With `factors` (n,) in float32 the values are multiplied by them first.
    A row's error is at most half its scale, which is its largest magnitude over 127. A row that is not finite keeps
    a scale that is not, so that it does not end as an answer.
    """
    if not _compiles(values):
        return quantize_rows_reference(values, factors)
    quantized = torch.empty(values.shape, dtype=torch.int8)
    scales = torch.empty(len(values), 1)
    _quantize_loop(values, quantized, scales, *values.shape, values.stride(0), _ones(values.shape[1], factors))
    return quantized, scales


def quantize_rows_reference(values: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`quantize_rows` by its definition."""
    values = values.float() if factors is None else values.float() * factors
    scales = values.abs().amax(-1, keepdim=True) / INT8_MAX
    quantized = (values / scales.clamp_min(torch.finfo(torch.float32).tiny)).round()
    return quantized.nan_to_num(0.0).clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scales


def silu_mul_quantize(
    sums: Tensor, scales: Tensor, weight_scales: Tensor, factors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`quantize_rows` of silu(gate) * up, from the products that gate and up still are.

    sums (rows, 2 n) in int32, gate first; scales (rows, 1); weight_scales (2 n,); factors (n,).
    """
    rows, size = len(sums), sums.shape[1] // 2
    if not openmp.available() or sums.device.type != "cpu":
        gate_up = sums.float().mul_(scales).mul_(weight_scales)
        return quantize_rows_reference(silu_mul_reference(gate_up), factors)
    quantized, out_scales = torch.empty((rows, size), dtype=torch.int8), torch.empty(rows, 1)
    _silu_loop(sums, scales, weight_scales, quantized, out_scales, rows, size, _ones(size, factors))
    return quantized, out_scales


def multiply(quantized: Tensor, scales: Tensor, weight: Tensor, weight_scales: Tensor, out: Tensor) -> Tensor:
    """out (rows, n) in float32 = quantized (rows, k) @ weight (n, k)^T, exact in int32, times both sides' scales."""
    sums = torch._int_mm(quantized, weight.t(), out=out.view(torch.int32))
    if not _compiles(out):
        return out.copy_(sums.float().mul_(scales).mul_(weight_scales))
    _scale_loop(sums, scales, weight_scales, out, *out.shape, 0)
    return out


def add_product(
    quantized: Tensor, scales: Tensor, weight: Tensor, weight_scales: Tensor, sums: Tensor, out: Tensor
) -> None:
    """out += what `multiply` gives; `sums` (rows, n) in int32 is room for the exact products."""
    torch._int_mm(quantized, weight.t(), out=sums)
    if not _compiles(out):
        out += sums.float().mul_(scales).mul_(weight_scales)
    else:
        assert out.is_contiguous()
        _scale_loop(sums, scales, weight_scales, out, *out.shape, 1)


def _ones(size: int, factors: Tensor | None) -> Tensor:
    return torch.ones(size) if factors is None else factors


def _compiles(values: Tensor) -> bool:
    plain = values.dtype == torch.float32 and values.device.type == "cpu" and values.dim() == 2
    return plain and values.shape[1] > 0 and values.stride(1) == 1 and openmp.available()


def _quantize_rows(arguments: Any) -> None:
    a = words(arguments, 7)
    rows, size, stride = a[3], a[4], a[5]
    values, factors = float32_at(a[0], rows * stride), float32_at(a[6], size)
    quantized, scales = int8_at(a[1], rows * size), float32_at(a[2], rows)
    product = np.empty(size, np.float32)
    first, last = share(rows)
    for row in range(first, last):
        source = values[row * stride : row * stride + size]
        for i in range(size):
            product[i] = source[i] * factors[i]
        scales[row] = quantize_row(product, quantized[row * size : (row + 1) * size])


@njit(inline="always", error_model="numpy", fastmath=FASTMATH)
def quantize_row(row: Any, target: Any) -> Any:
    """One row's bytes into `target`; returns its scale.

    Magnitudes compare as their bits do, and what is not finite is above all that is.
    """
    bits = row.view(np.int32)
    most = np.int32(0)
    for i in range(len(row)):
        most = max(most, bits[i] & np.int32(0x7FFFFFFF))
    largest = as_float32(most)
    step = np.float32(127) / max(largest, np.float32(1e-37))
    for i in range(len(row)):
        target[i] = np.int8(np.rint(row[i] * step))
    return largest / np.float32(127)


def _silu_mul_quantize(arguments: Any) -> None:
    a = words(arguments, 8)
    rows, size, factors = a[5], a[6], float32_at(a[7], a[6])
    sums, scales, weight_scales = int32_at(a[0], rows * size * 2), float32_at(a[1], rows), float32_at(a[2], 2 * size)
    quantized, out_scales = int8_at(a[3], rows * size), float32_at(a[4], rows)
    product = np.empty(size, np.float32)
    first, last = share(rows)
    for row in range(first, last):
        scale = scales[row]
        gate, up = sums[row * 2 * size : row * 2 * size + size], sums[row * 2 * size + size : (row + 1) * 2 * size]
        gate_scales, up_scales = weight_scales[:size], weight_scales[size:]
        for i in range(size):
            opened = np.float32(gate[i]) * (scale * gate_scales[i])
            closed = np.float32(up[i]) * (scale * up_scales[i])
            product[i] = opened / (np.float32(1) + exp(-opened)) * closed * factors[i]
        out_scales[row] = quantize_row(product, quantized[row * size : (row + 1) * size])


def _scale(arguments: Any) -> None:
    a = words(arguments, 7)
    rows, size, adds = a[4], a[5], a[6]
    sums, out = int32_at(a[0], rows * size), float32_at(a[3], rows * size)
    scales, weight_scales = float32_at(a[1], rows), float32_at(a[2], size)
    first, last = share(rows)
    for row in range(first, last):
        scale = scales[row]
        at = row * size
        if adds:
            for i in range(size):
                out[at + i] += np.float32(sums[at + i]) * (scale * weight_scales[i])
        else:
            for i in range(size):
                out[at + i] = np.float32(sums[at + i]) * (scale * weight_scales[i])


_quantize_loop = Loop(_quantize_rows)
_silu_loop = Loop(_silu_mul_quantize)
_scale_loop = Loop(_scale)
