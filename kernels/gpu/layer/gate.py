"""The gate of a gated MLP on a GPU: activation(gate) * up, read from one product's output and written once."""

from typing import Literal

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.layer.e4m3 import e4m3_like, row_warps, store_e4m3_row
from kernels.gpu.tuning.launch import launch

# As config.json names them.
Activation = Literal["silu", "gelu_pytorch_tanh"]
BLOCK = 1024
# sqrt(2 / pi), by which the curve of GELU is that of tanh (Hendrycks and Gimpel, arXiv 1606.08415, section 2).
GELU_SCALE: tl.constexpr = tl.constexpr(0.7978845608028654)


@triton.jit
def gate_kernel(
    gate_up_ptr, out_ptr, scales_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr, GELU: tl.constexpr, FP8: tl.constexpr
):
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
    # (1 + tanh(z)) / 2 is the logistic function of 2 z, so that both are a number times a logistic function.
    turn = 2 * GELU_SCALE * (gate + 0.044715 * gate * gate * gate) if GELU else gate
    opened = (gate / (1 + tl.exp(-turn))).to(dtype).to(tl.float32)
    result = (opened * up).to(dtype)
    if FP8:
        store_e4m3_row(result.to(tl.float32), out_ptr, scales_ptr, row, cell, mask, SIZE)
    else:
        tl.store(out_ptr + row * SIZE + cell, result, mask=mask)


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """gate_up (rows, 2 * size), contiguous: (rows, size) in its dtype."""
    rows, size = len(gate_up), gate_up.shape[1] // 2
    out = torch.empty((rows, size), dtype=gate_up.dtype, device=gate_up.device)
    _launch(gate_up, out, out, activation, BLOCK, fp8=False)
    return out


def gated_e4m3(gate_up: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """`gated` rounded as `e4m3_rows` rounds: codes (rows, size), scales (rows, 1)."""
    size = gate_up.shape[1] // 2
    codes, scales = e4m3_like(gate_up, size)
    _launch(gate_up, codes.view(torch.uint8), scales, activation, triton.next_power_of_2(size), fp8=True)
    return codes, scales


def _launch(gate_up: Tensor, out: Tensor, scales: Tensor, activation: Activation, block: int, *, fp8: bool) -> None:
    rows, size = len(gate_up), gate_up.shape[1] // 2
    assert gate_up.is_contiguous()
    if rows:
        launch(
            gate_kernel,
            (rows, triton.cdiv(size, block)),
            gate_up,
            out,
            scales,
            SIZE=size,
            BLOCK=block,
            GELU=activation == "gelu_pytorch_tanh",
            FP8=fp8,
            num_warps=row_warps(block) if fp8 else 4,
        )


def gated_reference(gate_up: Tensor, activation: Activation) -> Tensor:
    """`gated` by its definition: in float32, rounded after the activation and after the product."""
    gate, up = gate_up.chunk(2, -1)
    wide = gate.float()
    opened = F.silu(wide) if activation == "silu" else F.gelu(wide, approximate="tanh")
    return (opened.to(gate.dtype).float() * up.float()).to(gate.dtype)
