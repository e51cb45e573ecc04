"""Rows in 8 bits, with a scale for each group of neighbours.

A few channels of a language model's activations are far larger than the rest. With one scale a row they would leave
the rest few of its 255 steps; with one a group they cost their own group alone (as in llama.cpp's Q8_0, with larger
groups).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kernels import openmp
from kernels.openmp import Loop, as_float32, float32_at, int8_at, share, words

INT8_MAX = 127
# Elements of a group at most. Smaller ones are more exact, and leave more sums to scale.
MAX_GROUP = 256
# `matmul` takes several rows at once, and may read behind the last.
SPARE_ROWS = 16


def group_size(size: int) -> int:
    """Elements of each group of a row of `size` but the last: equal ones, a multiple of 4."""
    quads = -(size // -4)
    groups = -(quads // -(MAX_GROUP // 4))
    return 4 * -(quads // -groups)


def quantize_rows(values: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(rows, n) to int8 (rows, n) and float32 scales (rows, groups), symmetric: values are about int8 times scale.

    With `factors` (n,) in float32 the values are multiplied by them first. The error is at most half the scale, which
    is a group's largest magnitude over 127. A group that is not finite keeps a scale that is not, so that its row ends
    as no answer.
    """
    rows, size = values.shape
    group = group_size(size)
    values = values.float() if factors is None else values.float() * factors
    grouped = functional.pad(values, (0, -size % group)).view(rows, -(size // -group), group)
    scales = grouped.abs().amax(-1) / INT8_MAX
    quantized = (grouped / scales.clamp_min(torch.finfo(torch.float32).tiny)[..., None]).round()
    quantized = quantized.nan_to_num(0.0).clamp(-INT8_MAX, INT8_MAX).to(torch.int8)
    return quantized.flatten(1)[:, :size].contiguous(), scales


def byte_rows(values: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize_rows` of float32 values as `matmul` takes it.

    Bytes of which 128 is zero; a row is padded to whole words.
    """
    rows, size = values.shape
    if values.dtype != torch.float32 or values.device.type != "cpu" or not openmp.available():
        quantized, scales = quantize_rows(values, factors)
        return (functional.pad(quantized, (0, -size % 4)).view(torch.uint8) + 128), scales
    assert values.stride(1) == 1
    width, group = -(size // -4) * 4, group_size(size)
    room = rows + SPARE_ROWS
    quantized = torch.empty((room, width), dtype=torch.uint8)[:rows]
    scales = torch.empty(room, -(size // -group))[:rows]
    _loop(values, quantized, scales, rows, size, values.stride(0), width, group, factors)
    return quantized, scales


def _byte_rows(arguments: Any) -> None:
    a = words(arguments, 9)
    rows, size, stride, width, group = a[3], a[4], a[5], a[6], a[7]
    groups = -(size // -group)
    values, quantized = float32_at(a[0], rows * stride), int8_at(a[1], rows * width)
    scales, factors = float32_at(a[2], rows * groups), float32_at(a[8], size)
    product = np.empty(size, np.float32)
    first, last = share(rows)
    for row in range(first, last):
        read = values[row * stride : row * stride + size]
        for i in range(size):
            product[i] = read[i] * factors[i]
        for g in range(groups):
            start, end = g * group, min(size, (g + 1) * group)
            source = product[start:end]
            target = quantized[row * width + start : row * width + end]
            bits = source.view(np.int32)
            # Magnitudes compare as their bits do, and what is not finite is above all that is.
            most = np.int32(0)
            for i in range(end - start):
                most = max(most, bits[i] & np.int32(0x7FFFFFFF))
            largest = as_float32(most)
            step = np.float32(127) / max(largest, np.float32(1e-37))
            for i in range(end - start):
                target[i] = np.int8(np.int32(np.rint(source[i] * step)) + np.int32(128))
            scales[row * groups + g] = largest / np.float32(127)
        for i in range(size, width):
            quantized[row * width + i] = np.int8(-128)


_loop = Loop(_byte_rows)
