"""Root-mean-square norm of rows on a GPU, rounded where transformers' modules round."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.e4m3 import e4m3_like, row_warps, store_e4m3_row


@triton.jit
def rms_norm_kernel(
    x, weight, out, scales, eps, x_row, SIZE: tl.constexpr, BLOCK: tl.constexpr, NARROWED: tl.constexpr
):
    """Program i normalises row i; `out` is contiguous, with `NARROWED` codes over `scales`."""
    row = tl.program_id(0).to(tl.int64)
    cell = tl.arange(0, BLOCK)
    inside = cell < SIZE
    value = tl.load(x + row * x_row + cell, mask=inside, other=0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(value * value, 0) / SIZE + eps)
    scale = tl.load(weight + cell, mask=inside, other=0)
    dtype: tl.constexpr = x.dtype.element_ty
    normed = (value * factor).to(dtype).to(tl.float32)
    result = (normed * scale.to(tl.float32)).to(dtype)
    if NARROWED:
        store_e4m3_row(result.to(tl.float32), out, scales, row, cell, inside, SIZE)
    else:
        tl.store(out + row * SIZE + cell, result, mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, row by row: x (rows, size) with rows in any stride, weight (size,)."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, weight, eps, out, weight, narrowed=False)
    return out


def rms_norm_e4m3(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`rms_norm` as `e4m3_rows` makes it narrow: codes (rows, size), scales (rows, 1)."""
    codes, scales = e4m3_like(x, x.shape[1])
    _launch(x, weight, eps, codes.view(torch.uint8), scales, narrowed=True)
    return codes, scales


def _launch(x: Tensor, weight: Tensor, eps: float, out: Tensor, scales: Tensor, *, narrowed: bool) -> None:
    rows, size = x.shape
    assert x.stride(1) == 1, x.stride()
    if rows:
        block = triton.next_power_of_2(size)
        rms_norm_kernel[(rows,)](
            x,
            weight,
            out,
            scales,
            eps,
            x.stride(0),
            SIZE=size,
            BLOCK=block,
            NARROWED=narrowed,
            num_warps=row_warps(block),
        )


def rms_norm_rounded_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` by its definition: in float32, rounded to x's dtype before and after the weight."""
    wide = x.float()
    normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    return (normed.float() * weight.float()).to(x.dtype)
