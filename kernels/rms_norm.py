"""Root-mean-square norm of rows (Zhang & Sennrich, arXiv 1910.07467)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels import openmp
from kernels.openmp import FASTMATH, Loop, float32_at, float32_of, share, words  # noqa: F401


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """out = x / sqrt(mean(x^2) + eps) * weight, row by row; x, out (rows, size). float32 on the CPU is compiled."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or not openmp.available():
        return out.copy_(rms_norm_reference(x, weight, eps))
    assert x.is_contiguous()
    assert out.is_contiguous()
    _loop(x, weight, out, *x.shape, eps)
    return out


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` by its definition, in float32."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def _rms_norm(arguments: Any) -> None:
    a = words(arguments, 6)
    rows, size, eps = a[3], a[4], float32_of(a[5])
    x, weight, out = float32_at(a[0], rows * size), float32_at(a[1], size), float32_at(a[2], rows * size)
    first, last = share(rows)
    for row in range(first, last):
        at = row * size
        squares = np.float32(0)
        for i in range(size):
            squares += x[at + i] * x[at + i]
        factor = np.float32(1) / np.sqrt(squares / np.float32(size) + eps)
        for i in range(size):
            out[at + i] = x[at + i] * factor * weight[i]


_loop = Loop(_rms_norm)
