"""Rows in 8 bits, and what becomes of their exact products: the small passes around an int8 matmul."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels import openmp
from kernels.openmp import Loop, as_float32, float32_at, int8_at, int32_at, share, words

INT8_MAX = 127


def quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, n) to int8 (rows, n) and float32 scales (rows, 1), symmetric: values are about int8 times scale.

    A row's error is at most half its scale, which is its largest magnitude over 127. A row that is not finite keeps
    a scale that is not, so that it does not end as an answer.
    """
    if not _compiles(values):
        return quantize_rows_reference(values)
    quantized = torch.empty(values.shape, dtype=torch.int8)
    scales = torch.empty(len(values), 1)
    _quantize_loop(values, quantized, scales, *values.shape, values.stride(0))
    return quantized, scales


def quantize_rows_reference(values: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize_rows` by its definition."""
    values = values.float()
    scales = values.abs().amax(-1, keepdim=True) / INT8_MAX
    quantized = (values / scales.clamp_min(torch.finfo(torch.float32).tiny)).round()
    return quantized.nan_to_num(0.0).clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scales


def multiply(quantized: Tensor, scales: Tensor, weight: Tensor, weight_scales: Tensor, out: Tensor) -> Tensor:
    """out (rows, n) in float32 = quantized (rows, k) @ weight (n, k)^T, exact in int32, times both sides' scales."""
    sums = torch._int_mm(quantized, weight.t(), out=out.view(torch.int32))
    if not _compiles(out):
        return out.copy_(sums.float().mul_(scales).mul_(weight_scales))
    _scale_loop(sums, scales, weight_scales, *out.shape)
    return out


def _compiles(values: Tensor) -> bool:
    plain = values.dtype == torch.float32 and values.device.type == "cpu" and values.dim() == 2
    return plain and values.shape[1] > 0 and values.stride(1) == 1 and openmp.available()


def _quantize_rows(arguments: Any) -> None:
    a = words(arguments, 6)
    rows, size, stride = a[3], a[4], a[5]
    values, bits = float32_at(a[0], rows * stride), int32_at(a[0], rows * stride)
    quantized, scales = int8_at(a[1], rows * size), float32_at(a[2], rows)
    first, last = share(rows)
    for row in range(first, last):
        source, source_bits = values[row * stride : row * stride + size], bits[row * stride : row * stride + size]
        target = quantized[row * size : (row + 1) * size]
        # Magnitudes compare as their bits do, and what is not finite is above all that is.
        most = np.int32(0)
        for i in range(size):
            most = max(most, source_bits[i] & np.int32(0x7FFFFFFF))
        largest = as_float32(most)
        scales[row] = largest / np.float32(127)
        step = np.float32(127) / max(largest, np.float32(1e-37))
        for i in range(size):
            target[i] = np.int8(np.rint(source[i] * step))


def _scale(arguments: Any) -> None:
    a = words(arguments, 5)
    rows, size = a[3], a[4]
    sums, out = int32_at(a[0], rows * size), float32_at(a[0], rows * size)
    scales, weight_scales = float32_at(a[1], rows), float32_at(a[2], size)
    first, last = share(rows)
    for row in range(first, last):
        scale = scales[row]
        at = row * size
        for i in range(size):
            out[at + i] = np.float32(sums[at + i]) * (scale * weight_scales[i])


_quantize_loop = Loop(_quantize_rows)
_scale_loop = Loop(_scale)
