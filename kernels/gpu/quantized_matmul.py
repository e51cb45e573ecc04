"""Products with weights of 4 and 8 bits, for the few rows of a decoding step.

At 16 to 64 rows a linear layer waits for its weights, so bytes saved are time saved, as long as every weight is turned
into a number in registers, once, for all rows (Frantar et al., MARLIN, arXiv 2408.11743). A group's scale multiplies
the sums of the group, of which there are fewer than weights while rows are fewer than the group's inputs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.quantized_weights import QuantizedWeight

QUANTIZED_ROWS = 16  # of a program; with a group's inputs, enough for its four warps
STAGES = 3  # two groups of weights are on their way while one is multiplied


@triton.jit
def _offset_nibble(nibbles, dtype: tl.constexpr):
    """0..15 as -8..7, exactly, with no conversion: a nibble is the mantissa's end of a number of known exponent."""
    if dtype == tl.bfloat16:
        number = (nibbles.to(tl.uint16) | 0x4300).to(tl.bfloat16, bitcast=True)
        return (number.to(tl.float32) - 136.0).to(tl.bfloat16)
    number = (nibbles.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True)
    return (number - 1032.0).to(dtype)


@triton.jit(do_not_specialize=["rows"])
def w4a16_kernel(
    x,
    codes,
    scales,
    out,
    rows,
    outputs,
    inputs,
    x_row,
    M: tl.constexpr,
    N: tl.constexpr,
    GROUP: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Program (i, j, s): `M` rows by `N` outputs over each `SPLITS`-th group; out (SPLITS, rows, outputs)."""
    half: tl.constexpr = GROUP // 2
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    split = tl.program_id(2)
    k = tl.arange(0, half)
    x_ptrs = x + row.to(tl.int64)[:, None] * x_row + k[None, :]
    byte_ptrs = codes + (split * half + k).to(tl.int64)[:, None] * outputs + column[None, :]
    scale_ptrs = scales + split.to(tl.int64) * outputs + column
    acc = tl.zeros((M, N), tl.float32)
    for group in range(split, inputs // GROUP, SPLITS):
        packed = tl.load(byte_ptrs, mask=column[None, :] < outputs, other=0)
        low = tl.load(x_ptrs + group * GROUP, mask=row[:, None] < rows, other=0)
        high = tl.load(x_ptrs + group * GROUP + half, mask=row[:, None] < rows, other=0)
        scale = tl.load(scale_ptrs, mask=column < outputs, other=0)
        sums = tl.dot(low, _offset_nibble(packed & 15, x.dtype.element_ty), input_precision="ieee")
        sums = tl.dot(high, _offset_nibble(packed >> 4, x.dtype.element_ty), sums, input_precision="ieee")
        acc += sums * scale[None, :]
        byte_ptrs += SPLITS * half * outputs
        scale_ptrs += SPLITS * outputs
    target = out + (split.to(tl.int64) * rows + row)[:, None] * outputs + column[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=(row[:, None] < rows) & (column[None, :] < outputs))


@triton.jit(do_not_specialize=["rows"])
def quantize_kernel(
    x,
    factors,
    codes,
    scales,
    rows,
    inputs,
    x_row,
    M: tl.constexpr,
    GROUP: tl.constexpr,
    SMOOTHED: tl.constexpr,
):
    """Program (i, j): `M` rows of group j, read once."""
    row = tl.program_id(0) * M + tl.arange(0, M)
    k = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    real = row < rows
    row = row.to(tl.int64)
    values = tl.load(x + row[:, None] * x_row + k[None, :], mask=real[:, None], other=0).to(tl.float32)
    if SMOOTHED:
        values *= tl.load(factors + k)[None, :]
    # A maximum may pass over NaN; a sum does not, nor over 0 x inf.
    largest = tl.maximum(tl.max(tl.abs(values), 1), 1e-12) + tl.sum(values * 0, 1)
    scale = largest / 127
    # 1.5 x 2^23 leaves a float32 no bits below one: added and taken off it rounds to the nearest, even ones first.
    steps = values / scale[:, None] + 12582912.0 - 12582912.0
    tl.store(codes + row[:, None] * inputs + k[None, :], steps.to(tl.int8), mask=real[:, None])
    tl.store(scales + row * (inputs // GROUP) + tl.program_id(1), scale, mask=real)


@triton.jit(do_not_specialize=["rows"])
def w8a8_kernel(
    x,
    x_scales,
    codes,
    scales,
    out,
    rows,
    outputs,
    inputs,
    x_row,
    M: tl.constexpr,
    N: tl.constexpr,
    GROUP: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """As `w4a16_kernel`; products of a group are summed exactly, in int32."""
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    split = tl.program_id(2)
    k = tl.arange(0, GROUP)
    x_ptrs = x + row.to(tl.int64)[:, None] * x_row + k[None, :]
    x_scale_ptrs = x_scales + row.to(tl.int64) * (inputs // GROUP)
    scale_ptrs = scales + split.to(tl.int64) * outputs + column
    w_ptrs = codes + column.to(tl.int64)[:, None] * inputs + k[None, :]
    acc = tl.zeros((M, N), tl.float32)
    for group in range(split, inputs // GROUP, SPLITS):
        a = tl.load(x_ptrs + group * GROUP, mask=row[:, None] < rows, other=0)
        w = tl.load(w_ptrs + group * GROUP, mask=column[:, None] < outputs, other=0)
        x_scale = tl.load(x_scale_ptrs + group, mask=row < rows, other=0)
        scale = tl.load(scale_ptrs, mask=column < outputs, other=0)
        acc += tl.dot(a, tl.trans(w)).to(tl.float32) * x_scale[:, None] * scale[None, :]
        scale_ptrs += SPLITS * outputs
    target = out + (split.to(tl.int64) * rows + row)[:, None] * outputs + column[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=(row[:, None] < rows) & (column[None, :] < outputs))


def tile_of(rows: int, outputs: int, groups: int, processors: int) -> tuple[int, int, int]:
    """Rows, outputs and splits of a program's tile: all rows up to 64, and as many splits as fill the processors."""
    m = min(max(triton.next_power_of_2(rows), 16), 64)
    n = 64 if rows <= 16 else 128
    tiles = max(triton.cdiv(rows, m) * triton.cdiv(outputs, n), 1)
    # One program a processor is the least that reads at full speed; a split costs a float32 pass over the result.
    splits = max(min(processors // tiles, groups, 8), 1)
    return m, n, splits


def warps_of(m: int) -> int:
    """Tiles of 64 rows take 8: with 4, sm_80 spills 80 bytes a thread."""
    return 4 if m < 64 else 8


def matmul_w4a16(x: Tensor, weight: QuantizedWeight, processors: int) -> Tensor:
    """x (rows, inputs) in float, contiguous inputs; (rows, outputs) in x's dtype."""
    assert weight.bits == 4, weight.bits
    return _launch(w4a16_kernel, (x,), weight, x.dtype, processors)


def matmul_w8a8(codes: Tensor, scales: Tensor, weight: QuantizedWeight, dtype: torch.dtype, processors: int) -> Tensor:
    """codes (rows, inputs) int8, scales (rows, inputs / group), of `quantize_rows`; (rows, outputs) in `dtype`."""
    assert weight.bits == 8, weight.bits
    assert scales.shape == (len(codes), len(weight.scales)), (scales.shape, weight.scales.shape)
    return _launch(w8a8_kernel, (codes, scales), weight, dtype, processors)


def quantize_rows(x: Tensor, group: int, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`quantize_activations` in one pass; x (rows, inputs) with contiguous inputs."""
    rows, inputs = x.shape
    assert x.stride(1) == 1, x.stride()
    codes = torch.empty((rows, inputs), dtype=torch.int8, device=x.device)
    scales = torch.empty((rows, inputs // group), dtype=torch.float32, device=x.device)
    if rows:
        quantize_kernel[(triton.cdiv(rows, QUANTIZED_ROWS), inputs // group)](
            x,
            factors if factors is not None else scales,
            codes,
            scales,
            rows,
            inputs,
            x.stride(0),
            M=QUANTIZED_ROWS,
            GROUP=group,
            SMOOTHED=factors is not None,
            num_warps=4,
        )
    return codes, scales


def _launch(
    kernel: Any, activations: tuple[Tensor, ...], weight: QuantizedWeight, dtype: torch.dtype, processors: int
) -> Tensor:
    """A result that is split is summed in float32; else it is written as it is wanted."""
    x = activations[0]
    assert x.stride(1) == 1, x.stride()
    m, n, splits = tile_of(len(x), weight.outputs, len(weight.scales), processors)
    shape = (splits, len(x), weight.outputs)
    out = torch.empty(shape, dtype=dtype if splits == 1 else torch.float32, device=x.device)
    if len(x):
        kernel[(triton.cdiv(len(x), m), triton.cdiv(weight.outputs, n), splits)](
            *activations,
            weight.codes,
            weight.scales,
            out,
            len(x),
            weight.outputs,
            x.shape[1],
            x.stride(0),
            M=m,
            N=n,
            GROUP=weight.group,
            SPLITS=splits,
            num_warps=warps_of(m),
            num_stages=STAGES,
        )
    return out[0] if splits == 1 else out.sum(0).to(dtype)
