"""The gate of a gated MLP on a GPU: silu(gate) * up, read from one product's output and written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def silu_gate_kernel(gate_up, out, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Program (i, j): cells j of row i; the gate's `SIZE` columns lie before up's."""
    row = tl.program_id(0).to(tl.int64)
    cell = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cell < SIZE
    gate = tl.load(gate_up + row * 2 * SIZE + cell, mask=inside, other=0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * SIZE + SIZE + cell, mask=inside, other=0).to(tl.float32)
    dtype: tl.constexpr = out.dtype.element_ty
    opened = (gate / (1 + tl.exp(-gate))).to(dtype).to(tl.float32)
    tl.store(out + row * SIZE + cell, (opened * up).to(dtype), mask=inside)


def silu_gate(gate_up: Tensor) -> Tensor:
    """gate_up (rows, 2 * size), contiguous: (rows, size) in its dtype."""
    rows, both = gate_up.shape
    assert gate_up.is_contiguous()
    out = torch.empty((rows, both // 2), dtype=gate_up.dtype, device=gate_up.device)
    silu_gate_kernel[(rows, triton.cdiv(both // 2, BLOCK))](gate_up, out, SIZE=both // 2, BLOCK=BLOCK, num_warps=4)
    return out


def silu_gate_reference(gate_up: Tensor) -> Tensor:
    """`silu_gate` by its definition: in float32, rounded after silu and after the product."""
    gate, up = gate_up.chunk(2, -1)
    opened = (gate.float() * gate.float().sigmoid()).to(gate.dtype)
    return (opened.float() * up.float()).to(gate.dtype)
