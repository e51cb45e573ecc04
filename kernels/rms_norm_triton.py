"""Root-mean-square norm of rows on a GPU, rounded where transformers' modules round."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rms_norm_kernel(x, weight, out, eps, x_row, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Program i normalises row i; `out` is contiguous."""
    row = tl.program_id(0).to(tl.int64)
    cell = tl.arange(0, BLOCK)
    inside = cell < SIZE
    value = tl.load(x + row * x_row + cell, mask=inside, other=0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(value * value, 0) / SIZE + eps)
    scale = tl.load(weight + cell, mask=inside, other=0)
    dtype: tl.constexpr = out.dtype.element_ty
    normed = (value * factor).to(dtype).to(tl.float32)
    tl.store(out + row * SIZE + cell, (normed * scale.to(tl.float32)).to(dtype), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, row by row: x (rows, size) with rows in any stride, weight (size,)."""
    rows, size = x.shape
    assert x.stride(1) == 1, x.stride()
    out = torch.empty((rows, size), dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(size)
    warps = min(max(block // 512, 1), 8)
    rms_norm_kernel[(rows,)](x, weight, out, eps, x.stride(0), SIZE=size, BLOCK=block, num_warps=warps)
    return out


def rms_norm_rounded_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` by its definition: in float32, rounded to x's dtype before and after the weight."""
    wide = x.float()
    normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    return (normed.float() * weight.float()).to(x.dtype)
