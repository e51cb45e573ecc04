"""Rotary position embedding, in halves (Su et al., arXiv 2104.09864; the pairing is GPT-NeoX's)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.language.hadamard import mix
from kernels.cpu.language.openmp import Loop, float32_at, lines_of, share, words
from kernels.cpu.language.vectors import WIDTH
from kernels.cpu.matmul.int8_rows import block_size, mixed


def rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int, *, mixes: bool = False) -> None:
    """Rotates the first `heads` heads of each row of x (rows, width), in place; cos, sin (rows, dim).

    `mixes`: each head then goes through `mixed`. Queries and keys that both did have the products that they had, and
    no element is far larger than the others, which is what 8 bits want.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu" or not _loop.available:
        rotate_reference(x, cos, sin, heads, mixes=mixes)
        return
    assert x.is_contiguous()
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    block = block_size(cos.shape[1])
    _loop(x, cos, sin, *x.shape, heads, cos.shape[1], block if mixes and block > 1 else 0)


def rotate_reference(x: Tensor, cos: Tensor, sin: Tensor, heads: int, *, mixes: bool = False) -> None:
    """`rotate` by its definition."""
    part = x[:, : heads * cos.shape[1]].view(len(x), heads, cos.shape[1])
    low, high = part.chunk(2, dim=-1)
    turned = part * cos[:, None] + torch.cat((-high, low), dim=-1) * sin[:, None]
    part.copy_(mixed(turned) if mixes else turned)


def _rotate(arguments: Any) -> None:
    a = words(arguments, 8)
    rows, width, heads, dim, block = a[3], a[4], a[5], a[6], a[7]
    x, cos, sin = float32_at(a[0], rows * width), float32_at(a[1], rows * dim), float32_at(a[2], rows * dim)
    half = dim // 2
    shrink, edge = lines_of(heads * dim), lines_of(2 * WIDTH)
    shrink[:] = np.float32(1) / np.sqrt(np.float32(max(block, 1)))
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
        if block:
            at, unused = a[0] + 4 * row * width, edge.ctypes.data
            mix(block, at, shrink.ctypes.data, at, heads * dim // block, unused, unused + 4 * WIDTH)


_loop = Loop(_rotate)
