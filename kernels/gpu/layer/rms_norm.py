"""Root-mean-square norm of rows on a GPU, rounded where transformers' modules round."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.layer.e4m3 import e4m3_like, row_warps, store_e4m3_row
from kernels.gpu.tuning.launch import launch


@triton.jit
def normed_row(value, weight_ptr, cell, mask, eps, dtype: tl.constexpr, SIZE: tl.constexpr, ROUNDED: tl.constexpr):
    """A row's norm as `dtype`, of value [BLOCK] in float32 with zeros behind `SIZE`; with `ROUNDED` it is rounded
    before the weight too, as Llama's is and Gemma's is not.
    """
    factor = tl.rsqrt(tl.sum(value * value, 0) / SIZE + eps)
    # Read behind the sum, so that no register holds it meanwhile.
    weight = tl.load(weight_ptr + cell, mask=mask, other=0)
    normed = value * factor
    if ROUNDED:
        normed = normed.to(dtype).to(tl.float32)
    return (normed * weight.to(tl.float32)).to(dtype)


@triton.jit
def rms_norm_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    scales_ptr,
    eps,
    x_row_stride,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUNDED: tl.constexpr,
    FP8: tl.constexpr,
):
    """Program i normalises row i; `out` is contiguous, with `FP8` codes over `scales`."""
    row = tl.program_id(0).to(tl.int64)
    # [BLOCK]
    cell = tl.arange(0, BLOCK)
    mask = cell < SIZE
    value = tl.load(x_ptr + row * x_row_stride + cell, mask=mask, other=0).to(tl.float32)
    result = normed_row(value, weight_ptr, cell, mask, eps, x_ptr.dtype.element_ty, SIZE, ROUNDED)
    if FP8:
        store_e4m3_row(result.to(tl.float32), out_ptr, scales_ptr, row, cell, mask, SIZE)
    else:
        tl.store(out_ptr + row * SIZE + cell, result, mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, rounded: bool = True) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, row by row: x (rows, size) with rows in any stride, weight (size,).

    `rounded`: x's dtype is taken before the weight, and again behind it.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, weight, eps, out, weight, rounded=rounded, fp8=False)
    return out


def rms_norm_e4m3(x: Tensor, weight: Tensor, eps: float, *, rounded: bool = True) -> tuple[Tensor, Tensor]:
    """`rms_norm` rounded as `e4m3_rows` rounds: codes (rows, size), scales (rows, 1)."""
    codes, scales = e4m3_like(x, x.shape[1])
    _launch(x, weight, eps, codes.view(torch.uint8), scales, rounded=rounded, fp8=True)
    return codes, scales


def _launch(x: Tensor, weight: Tensor, eps: float, out: Tensor, scales: Tensor, *, rounded: bool, fp8: bool) -> None:
    rows, size = x.shape
    assert x.stride(1) == 1, x.stride()
    if rows:
        block = triton.next_power_of_2(size)
        launch(
            rms_norm_kernel,
            (rows,),
            x,
            weight,
            out,
            scales,
            eps,
            x.stride(0),
            SIZE=size,
            BLOCK=block,
            ROUNDED=rounded,
            FP8=fp8,
            num_warps=row_warps(block),
        )


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, *, rounded: bool = True) -> Tensor:
    """`rms_norm` by its definition, in float32."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if rounded:
        normed = normed.to(x.dtype).float()
    return (normed * weight.float()).to(x.dtype)
