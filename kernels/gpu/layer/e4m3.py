"""Numbers of 8 bits with an exponent, float8_e4m3fn, made with what every device has."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.tuning.launch import launch

# The largest that there is.
E4M3_MAX: tl.constexpr = tl.constexpr(448.0)


@triton.jit
def to_e4m3(x):
    """Bits of float8_e4m3fn, saturated, to the nearest. As a float16 of x / 256 the exponents of both agree.

    NaN, which a minimum may pass over, stays NaN. In 32 bits each step is one instruction of a GPU.
    """
    half = (tl.minimum(tl.maximum(x, -448.0), 448.0) * 0.00390625).to(tl.float16)
    bits = half.to(tl.uint16, bitcast=True).to(tl.uint32)
    sign, size = (bits >> 8) & 0x80, bits & 0x7FFF
    code = sign | ((size + 0x3F + ((size >> 7) & 1)) >> 7)
    return tl.where(x == x, code, 0x7F).to(tl.uint8)


@triton.jit
def store_e4m3_row(x, codes_ptr, scales_ptr, row, cell, mask, SIZE: tl.constexpr):
    """Writes row `row`, x [BLOCK] in float32, as codes over one scale: its largest number over the largest code.

    One NaN makes the scale NaN: as whole numbers its bits are the largest, where a maximum of floats may pass over it.
    """
    bits = tl.abs(tl.where(mask, x, 0.0)).to(tl.int32, bitcast=True)
    scale = tl.max(bits, 0).to(tl.float32, bitcast=True) / E4M3_MAX
    scale = tl.where(scale < 1e-12, 1e-12, scale)
    tl.store(codes_ptr + row * SIZE + cell, to_e4m3(x / scale), mask=mask)
    tl.store(scales_ptr + row, scale)


@triton.jit
def e4m3_rows_kernel(x_ptr, codes_ptr, scales_ptr, x_row_stride, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Program i rounds row i."""
    row = tl.program_id(0).to(tl.int64)
    # [BLOCK]
    cell = tl.arange(0, BLOCK)
    mask = cell < SIZE
    value = tl.load(x_ptr + row * x_row_stride + cell, mask=mask, other=0).to(tl.float32)
    store_e4m3_row(value, codes_ptr, scales_ptr, row, cell, mask, SIZE)


def e4m3_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (rows, size), rows in any stride: codes (rows, size) in float8_e4m3fn and scales (rows, 1) in float32.

    A row is codes times its scale, to the nearest.
    """
    rows, size = x.shape
    assert x.stride(1) == 1, x.stride()
    codes, scales = e4m3_like(x, size)
    if rows:
        block = triton.next_power_of_2(size)
        launch(
            e4m3_rows_kernel,
            (rows,),
            x,
            codes.view(torch.uint8),
            scales,
            x.stride(0),
            SIZE=size,
            BLOCK=block,
            num_warps=row_warps(block),
        )
    return codes, scales


def e4m3_like(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Room for codes and scales of x's rows."""
    codes = torch.empty((len(x), size), dtype=torch.uint8, device=x.device).view(torch.float8_e4m3fn)
    return codes, torch.empty((len(x), 1), dtype=torch.float32, device=x.device)


def row_warps(block: int) -> int:
    """Warps of a program that holds a row of `block` numbers."""
    return min(max(block // 512, 1), 16)


def e4m3_rows_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """`e4m3_rows` by its definition."""
    wide = x.float()
    scales = (wide.abs().amax(-1, keepdim=True) / E4M3_MAX.value).clamp(min=1e-12)
    return (wide / scales).clamp(-E4M3_MAX.value, E4M3_MAX.value).to(torch.float8_e4m3fn), scales
