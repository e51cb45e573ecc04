"""The gated half of an MLP: silu(gate) * up (Shazeer, arXiv 2002.05202)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kernels import openmp
from kernels.openmp import Loop, exp, float32_at, share, words


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up (rows, 2 size), gate first -> (rows, size): a view of gate_up's first half, which is overwritten."""
    size = gate_up.shape[1] // 2
    if gate_up.dtype != torch.float32 or gate_up.device.type != "cpu" or not openmp.available():
        gate_up[:, :size] = silu_mul_reference(gate_up)
    else:
        assert gate_up.is_contiguous()
        _loop(gate_up, len(gate_up), size)
    return gate_up[:, :size]


def silu_mul_reference(gate_up: Tensor) -> Tensor:
    """`silu_mul` by its definition, as a new tensor."""
    gate, up = gate_up.chunk(2, dim=1)
    return functional.silu(gate) * up


def _silu_mul(arguments: Any) -> None:
    a = words(arguments, 3)
    rows, size = a[1], a[2]
    x = float32_at(a[0], rows * size * 2)
    first, last = share(rows)
    for row in range(first, last):
        gate = x[row * 2 * size : row * 2 * size + size]
        up = x[row * 2 * size + size : (row + 1) * 2 * size]
        for i in range(size):
            gate[i] = gate[i] / (np.float32(1) + exp(-gate[i])) * up[i]


_loop = Loop(_silu_mul)
