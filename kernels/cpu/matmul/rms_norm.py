"""Root-mean-square norm of rows (Zhang & Sennrich, arXiv 1910.07467)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.language.openmp import Loop, float32_at, float32_of, narrow, share, uint16_at, words


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """out = x / sqrt(mean(x^2) + eps) * weight, row by row; x (rows, size) in float32, out in float32 or bfloat16."""
    if x.dtype != weight.dtype or x.dtype != torch.float32 or x.device.type != "cpu" or not _loop.available:
        return out.copy_(rms_norm_reference(x, weight, eps))
    assert x.is_contiguous()
    assert out.is_contiguous()
    _loop(x, weight, out, *x.shape, eps, int(out.dtype == torch.bfloat16))
    return out


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` by its definition, in float32."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def _rms_norm(arguments: Any) -> None:
    a = words(arguments, 7)
    rows, size, eps, is_narrow = a[3], a[4], float32_of(a[5]), a[6]
    x, weight = float32_at(a[0], rows * size), float32_at(a[1], size)
    out, halves = float32_at(a[2], rows * size), uint16_at(a[2], rows * size)
    first, last = share(rows)
    for row in range(first, last):
        source = x[row * size : (row + 1) * size]
        squares = np.float32(0)
        for i in range(size):
            squares += source[i] * source[i]
        factor = np.float32(1) / np.sqrt(squares / np.float32(size) + eps)
        if is_narrow:
            target_halves = halves[row * size : (row + 1) * size]
            for i in range(size):
                target_halves[i] = np.uint16(narrow(source[i] * factor * weight[i]))
        else:
            target = out[row * size : (row + 1) * size]
            for i in range(size):
                target[i] = source[i] * factor * weight[i]


_loop = Loop(_rms_norm)
