"""The gate of a gated MLP on a GPU: silu(gate) * up, read from one product's output and written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.layer.e4m3 import e4m3_like, row_warps, store_e4m3_row
from kernels.gpu.tuning.launch import launch

BLOCK = 1024


@triton.jit
def silu_gate_kernel(gate_up_ptr, out_ptr, scales_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr, FP8: tl.constexpr):
    """Program (i, j): cells j of row i; the gate's `SIZE` columns lie before up's. With `FP8` a block is a row, and
    `out` is codes over `scales`.
    """
    row = tl.program_id(0).to(tl.int64)
    # [BLOCK]
    cell = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cell < SIZE
    gate = tl.load(gate_up_ptr + row * 2 * SIZE + cell, mask=mask, other=0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * SIZE + SIZE + cell, mask=mask, other=0).to(tl.float32)
    dtype: tl.constexpr = gate_up_ptr.dtype.element_ty
    opened = (gate / (1 + tl.exp(-gate))).to(dtype).to(tl.float32)
    result = (opened * up).to(dtype)
    if FP8:
        store_e4m3_row(result.to(tl.float32), out_ptr, scales_ptr, row, cell, mask, SIZE)
    else:
        tl.store(out_ptr + row * SIZE + cell, result, mask=mask)


def silu_gate(gate_up: Tensor) -> Tensor:
    """gate_up (rows, 2 * size), contiguous: (rows, size) in its dtype."""
    rows, size = len(gate_up), gate_up.shape[1] // 2
    assert gate_up.is_contiguous()
    out = torch.empty((rows, size), dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        grid = rows, triton.cdiv(size, BLOCK)
        launch(silu_gate_kernel, grid, gate_up, out, out, SIZE=size, BLOCK=BLOCK, FP8=False, num_warps=4)
    return out


def silu_gate_e4m3(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """`silu_gate` rounded as `e4m3_rows` rounds: codes (rows, size), scales (rows, 1)."""
    rows, size = len(gate_up), gate_up.shape[1] // 2
    assert gate_up.is_contiguous()
    codes, scales = e4m3_like(gate_up, size)
    if rows:
        block = triton.next_power_of_2(size)
        launch(
            silu_gate_kernel,
            (rows, 1),
            gate_up,
            codes.view(torch.uint8),
            scales,
            SIZE=size,
            BLOCK=block,
            FP8=True,
            num_warps=row_warps(block),
        )
    return codes, scales


def silu_gate_reference(gate_up: Tensor) -> Tensor:
    """`silu_gate` by its definition: in float32, rounded after silu and after the product."""
    gate, up = gate_up.chunk(2, -1)
    opened = (gate.float() * gate.float().sigmoid()).to(gate.dtype)
    return (opened.float() * up.float()).to(gate.dtype)
