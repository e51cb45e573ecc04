"""Rows in 8 bits, each with a scale of its own."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kernels import openmp
from kernels.openmp import Loop, as_float32, float32_at, int8_at, share, words

INT8_MAX = 127


def quantize_rows(values: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(rows, n) to int8 (rows, n) and float32 scales (rows,), symmetric: values are about int8 times scale.

    With `factors` (n,) in float32 the values are multiplied by them first. A row's error is at most half its scale,
    which is its largest magnitude over 127. A row that is not finite keeps a scale that is not, so that it ends as no
    answer.
    """
    values = values.float() if factors is None else values.float() * factors
    scales = values.abs().amax(-1, keepdim=True) / INT8_MAX
    quantized = (values / scales.clamp_min(torch.finfo(torch.float32).tiny)).round()
    return quantized.nan_to_num(0.0).clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scales[:, 0]


def byte_rows(values: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize_rows` of float32 values as `matmul` takes it.

    Bytes of which 128 is zero; a row is padded to whole words.
    """
    rows, size = values.shape
    if values.dtype != torch.float32 or values.device.type != "cpu" or not openmp.available():
        quantized, scales = quantize_rows(values, factors)
        return (functional.pad(quantized, (0, -size % 4)).view(torch.uint8) + 128), scales
    assert values.stride(1) == 1
    width = -(size // -4) * 4
    quantized, scales = torch.empty((rows, width), dtype=torch.uint8), torch.empty(rows)
    _loop(values, quantized, scales, rows, size, values.stride(0), factors, width)
    return quantized, scales


def _byte_rows(arguments: Any) -> None:
    a = words(arguments, 8)
    rows, size, stride, width = a[3], a[4], a[5], a[7]
    values, factors = float32_at(a[0], rows * stride), float32_at(a[6], size)
    quantized, scales = int8_at(a[1], rows * width), float32_at(a[2], rows)
    product = np.empty(size, np.float32)
    bits = product.view(np.int32)
    first, last = share(rows)
    for row in range(first, last):
        source, target = values[row * stride : row * stride + size], quantized[row * width : (row + 1) * width]
        for i in range(size):
            product[i] = source[i] * factors[i]
        # Magnitudes compare as their bits do, and what is not finite is above all that is.
        most = np.int32(0)
        for i in range(size):
            most = max(most, bits[i] & np.int32(0x7FFFFFFF))
        largest = as_float32(most)
        step = np.float32(127) / max(largest, np.float32(1e-37))
        for i in range(size):
            target[i] = np.int8(np.int32(np.rint(product[i] * step)) + np.int32(128))
        for i in range(size, width):
            target[i] = np.int8(-128)
        scales[row] = largest / np.float32(127)


_loop = Loop(_byte_rows)
