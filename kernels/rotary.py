"""Rotary position embedding, in halves (Su et al., arXiv 2104.09864; the pairing is GPT-NeoX's)."""

from typing import Any

import torch
from torch import Tensor

from kernels import openmp
from kernels.openmp import Loop, float32_at, share, words


def rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    """Rotates the first `heads` heads of each row of x (rows, width), in place; cos, sin (rows, dim)."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or not openmp.available():
        rotate_reference(x, cos, sin, heads)
        return
    assert x.is_contiguous()
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    _loop(x, cos, sin, *x.shape, heads, cos.shape[1])


def rotate_reference(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    """`rotate` by its definition."""
    part = x[:, : heads * cos.shape[1]].view(len(x), heads, cos.shape[1])
    low, high = part.chunk(2, dim=-1)
    part.copy_(part * cos[:, None] + torch.cat((-high, low), dim=-1) * sin[:, None])


def _rotate(arguments: Any) -> None:
    a = words(arguments, 7)
    rows, width, heads, dim = a[3], a[4], a[5], a[6]
    x, cos, sin = float32_at(a[0], rows * width), float32_at(a[1], rows * dim), float32_at(a[2], rows * dim)
    half = dim // 2
    first, last = share(rows)
    for row in range(first, last):
        turn_cos, turn_sin = cos[row * dim : (row + 1) * dim], sin[row * dim : (row + 1) * dim]
        for head in range(heads):
            at = row * width + head * dim
            low, high = x[at : at + half], x[at + half : at + dim]
            for i in range(half):
                left, right = low[i], high[i]
                low[i] = left * turn_cos[i] - right * turn_sin[i]
                high[i] = right * turn_cos[half + i] + left * turn_sin[half + i]


_loop = Loop(_rotate)
