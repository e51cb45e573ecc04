"""Rotary position embedding, in halves (Su et al., arXiv 2104.09864; the pairing is GPT-NeoX's)."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.language.arguments import reader
from kernels.cpu.language.hadamard import hadamard_blocks
from kernels.cpu.language.openmp import Loop, float32_at, lines_of, share
from kernels.cpu.language.vectors import WIDTH
from kernels.cpu.matmul.int8_rows import block_size, hadamard_transform


class RotaryArguments(NamedTuple):
    x: Tensor
    cos: Tensor
    sin: Tensor
    rows: int
    width: int
    heads: int
    dim: int
    block: int  # of the Hadamard transform behind the rotation; 0 for none


_read = reader(RotaryArguments)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int, *, hadamard: bool = False) -> None:
    """Rotates the first `heads` heads of each row of x (rows, width), in place; cos, sin (rows, dim).

    `hadamard`: each head then goes through `hadamard_transform`. Queries and keys that both did have the products that
    they had, and no element is far larger than the others, which is what 8 bits want.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu" or not LOOP.available:
        rotate_reference(x, cos, sin, heads, hadamard=hadamard)
        return
    assert x.is_contiguous()
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    (rows, width), dim = x.shape, cos.shape[1]
    block = block_size(dim) if hadamard else 1
    LOOP(x=x, cos=cos, sin=sin, rows=rows, width=width, heads=heads, dim=dim, block=block if block > 1 else 0)


def rotate_reference(x: Tensor, cos: Tensor, sin: Tensor, heads: int, *, hadamard: bool = False) -> None:
    """`rotate` by its definition."""
    part = x[:, : heads * cos.shape[1]].view(len(x), heads, cos.shape[1])
    low, high = part.chunk(2, dim=-1)
    turned = part * cos[:, None] + torch.cat((-high, low), dim=-1) * sin[:, None]
    part.copy_(hadamard_transform(turned) if hadamard else turned)


def _rotate(arguments: Any) -> None:
    a = _read(arguments)
    width, heads, dim, block = a.width, a.heads, a.dim, a.block
    x = float32_at(a.x, a.rows * width)
    cos, sin = float32_at(a.cos, a.rows * dim), float32_at(a.sin, a.rows * dim)
    half = dim // 2
    shrink, edge = lines_of(heads * dim), lines_of(2 * WIDTH)
    shrink[:] = np.float32(1) / np.sqrt(np.float32(max(block, 1)))
    first, last = share(a.rows)
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
            at, unused = a.x + 4 * row * width, edge.ctypes.data
            hadamard_blocks(block, at, shrink.ctypes.data, at, heads * dim // block, unused, unused + 4 * WIDTH)


LOOP = Loop(_rotate, RotaryArguments)
