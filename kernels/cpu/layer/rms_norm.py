"""Root-mean-square norm of rows (Zhang & Sennrich, arXiv 1910.07467)."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.language.arguments import reader
from kernels.cpu.language.openmp import Loop, bfloat16_bits, float32_at, share, uint16_at


class RmsNormArguments(NamedTuple):
    x: Tensor
    weight: Tensor
    out: Tensor
    rows: int
    size: int
    eps: float
    out_is_bfloat16: bool


_read = reader(RmsNormArguments)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """out = x / sqrt(mean(x^2) + eps) * weight, row by row; x (rows, size) in float32, out in float32 or bfloat16."""
    if x.dtype != weight.dtype or x.dtype != torch.float32 or x.device.type != "cpu" or not LOOP.available:
        return out.copy_(rms_norm_reference(x, weight, eps))
    assert x.is_contiguous()
    assert out.is_contiguous()
    rows, size = x.shape
    out_is_bfloat16 = out.dtype == torch.bfloat16
    LOOP(x=x, weight=weight, out=out, rows=rows, size=size, eps=eps, out_is_bfloat16=out_is_bfloat16)
    return out


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` by its definition, in float32."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def _rms_norm(arguments: Any) -> None:
    a = _read(arguments)
    size = a.size
    x, weight = float32_at(a.x, a.rows * size), float32_at(a.weight, size)
    out, halves = float32_at(a.out, a.rows * size), uint16_at(a.out, a.rows * size)
    first, last = share(a.rows)
    for row in range(first, last):
        source = x[row * size : (row + 1) * size]
        squares = np.float32(0)
        for i in range(size):
            squares += source[i] * source[i]
        factor = np.float32(1) / np.sqrt(squares / np.float32(size) + a.eps)
        if a.out_is_bfloat16:
            target_halves = halves[row * size : (row + 1) * size]
            for i in range(size):
                target_halves[i] = np.uint16(bfloat16_bits(source[i] * factor * weight[i]))
        else:
            target = out[row * size : (row + 1) * size]
            for i in range(size):
                target[i] = source[i] * factor * weight[i]


LOOP = Loop(_rms_norm, RmsNormArguments)
