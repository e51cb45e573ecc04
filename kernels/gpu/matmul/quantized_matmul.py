"""Products with weights of 4 and 8 bits, for the few rows of a decoding step.

At 16 to 64 rows a linear layer waits for its weights, so bytes saved are time saved, as long as every weight is turned
into a number in registers, once, for all rows (Frantar et al., MARLIN, arXiv 2408.11743). A group's scale multiplies
the sums of the group, of which there are fewer than weights while rows are fewer than the group's inputs.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.matmul.quantized_weights import QuantizedWeight
from kernels.gpu.tuning.launch import launch

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


class MatmulTile(NamedTuple):
    """A program's tile: `M` rows by `N` outputs over each `SPLITS`-th group of `GROUP` inputs."""

    M: int
    N: int
    GROUP: int
    SPLITS: int


@triton.jit
def _store_sums(acc, out_ptr, row, column, split, num_rows, num_outputs):
    """Writes acc [M, N] into its split of out (SPLITS, rows, outputs)."""
    mask = (row[:, None] < num_rows) & (column[None, :] < num_outputs)
    out_ptrs = out_ptr + (split.to(tl.int64) * num_rows + row)[:, None] * num_outputs + column[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def w4a16_kernel(
    x_ptr, codes_ptr, scales_ptr, out_ptr, num_rows, num_outputs, num_inputs, x_row_stride, TILE: tl.constexpr
):
    """Program (i, j, s): tile i, j of split s; out (SPLITS, rows, outputs)."""
    M: tl.constexpr = TILE.M
    N: tl.constexpr = TILE.N
    GROUP: tl.constexpr = TILE.GROUP
    SPLITS: tl.constexpr = TILE.SPLITS
    half: tl.constexpr = GROUP // 2
    # [M]
    row = tl.program_id(0) * M + tl.arange(0, M)
    # [N]
    column = tl.program_id(1) * N + tl.arange(0, N)
    split = tl.program_id(2)
    # [GROUP / 2]
    k = tl.arange(0, half)
    x_ptrs = x_ptr + row.to(tl.int64)[:, None] * x_row_stride + k[None, :]
    byte_ptrs = codes_ptr + (split * half + k).to(tl.int64)[:, None] * num_outputs + column[None, :]
    scale_ptrs = scales_ptr + split.to(tl.int64) * num_outputs + column
    # [M, N]
    acc = tl.zeros((M, N), tl.float32)
    for group in range(split, num_inputs // GROUP, SPLITS):
        # [GROUP / 2, N]
        packed = tl.load(byte_ptrs, mask=column[None, :] < num_outputs, other=0)
        # [M, GROUP / 2]
        low = tl.load(x_ptrs + group * GROUP, mask=row[:, None] < num_rows, other=0)
        high = tl.load(x_ptrs + group * GROUP + half, mask=row[:, None] < num_rows, other=0)
        # [N]
        scale = tl.load(scale_ptrs, mask=column < num_outputs, other=0)
        sums = tl.dot(low, _offset_nibble(packed & 15, x_ptr.dtype.element_ty), input_precision="ieee")
        sums = tl.dot(high, _offset_nibble(packed >> 4, x_ptr.dtype.element_ty), sums, input_precision="ieee")
        acc += sums * scale[None, :]
        byte_ptrs += SPLITS * half * num_outputs
        scale_ptrs += SPLITS * num_outputs
    _store_sums(acc, out_ptr, row, column, split, num_rows, num_outputs)


@triton.jit(do_not_specialize=["num_rows"])
def quantize_kernel(
    x_ptr,
    factors_ptr,
    codes_ptr,
    scales_ptr,
    num_rows,
    num_inputs,
    x_row_stride,
    M: tl.constexpr,
    GROUP: tl.constexpr,
    SMOOTHED: tl.constexpr,
):
    """Program (i, j): `M` rows of group j, read once."""
    # [M]
    row = tl.program_id(0) * M + tl.arange(0, M)
    # [GROUP]
    k = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    row_mask = row < num_rows
    row = row.to(tl.int64)
    # [M, GROUP]
    values = tl.load(x_ptr + row[:, None] * x_row_stride + k[None, :], mask=row_mask[:, None], other=0).to(tl.float32)
    if SMOOTHED:
        values *= tl.load(factors_ptr + k)[None, :]
    # A maximum may pass over NaN; a sum does not, nor over 0 x inf.
    largest = tl.maximum(tl.max(tl.abs(values), 1), 1e-12) + tl.sum(values * 0, 1)
    # [M]
    scale = largest / 127
    # 1.5 x 2^23 leaves a float32 no bits below one: added and taken off it rounds to the nearest, even ones first.
    steps = values / scale[:, None] + 12582912.0 - 12582912.0
    tl.store(codes_ptr + row[:, None] * num_inputs + k[None, :], steps.to(tl.int8), mask=row_mask[:, None])
    tl.store(scales_ptr + row * (num_inputs // GROUP) + tl.program_id(1), scale, mask=row_mask)


@triton.jit(do_not_specialize=["num_rows"])
def w8a8_kernel(
    x_ptr,
    x_scales_ptr,
    codes_ptr,
    scales_ptr,
    out_ptr,
    num_rows,
    num_outputs,
    num_inputs,
    x_row_stride,
    TILE: tl.constexpr,
):
    """As `w4a16_kernel`; products of a group are summed exactly, in int32."""
    M: tl.constexpr = TILE.M
    N: tl.constexpr = TILE.N
    GROUP: tl.constexpr = TILE.GROUP
    SPLITS: tl.constexpr = TILE.SPLITS
    # [M]
    row = tl.program_id(0) * M + tl.arange(0, M)
    # [N]
    column = tl.program_id(1) * N + tl.arange(0, N)
    split = tl.program_id(2)
    # [GROUP]
    k = tl.arange(0, GROUP)
    x_ptrs = x_ptr + row.to(tl.int64)[:, None] * x_row_stride + k[None, :]
    x_scale_ptrs = x_scales_ptr + row.to(tl.int64) * (num_inputs // GROUP)
    scale_ptrs = scales_ptr + split.to(tl.int64) * num_outputs + column
    w_ptrs = codes_ptr + column.to(tl.int64)[:, None] * num_inputs + k[None, :]
    # [M, N]
    acc = tl.zeros((M, N), tl.float32)
    for group in range(split, num_inputs // GROUP, SPLITS):
        # [M, GROUP]
        a = tl.load(x_ptrs + group * GROUP, mask=row[:, None] < num_rows, other=0)
        # [N, GROUP]
        w = tl.load(w_ptrs + group * GROUP, mask=column[:, None] < num_outputs, other=0)
        # [M]
        x_scale = tl.load(x_scale_ptrs + group, mask=row < num_rows, other=0)
        # [N]
        scale = tl.load(scale_ptrs, mask=column < num_outputs, other=0)
        acc += tl.dot(a, tl.trans(w)).to(tl.float32) * x_scale[:, None] * scale[None, :]
        scale_ptrs += SPLITS * num_outputs
    _store_sums(acc, out_ptr, row, column, split, num_rows, num_outputs)


def matmul_tile(rows: int, outputs: int, groups: int, group: int, processors: int) -> MatmulTile:
    """All rows up to 64, and as many splits of the `groups` of `group` inputs as fill the processors."""
    m = min(max(triton.next_power_of_2(rows), 16), 64)
    n = 64 if rows <= 16 else 128
    tiles = max(triton.cdiv(rows, m) * triton.cdiv(outputs, n), 1)
    # One program a processor is the least that reads at full speed; a split costs a float32 pass over the result.
    splits = max(min(processors // tiles, groups, 8), 1)
    return MatmulTile(m, n, group, splits)


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
        launch(
            quantize_kernel,
            (triton.cdiv(rows, QUANTIZED_ROWS), inputs // group),
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
    tile = matmul_tile(len(x), weight.outputs, len(weight.scales), weight.group, processors)
    shape = (tile.SPLITS, len(x), weight.outputs)
    out = torch.empty(shape, dtype=dtype if tile.SPLITS == 1 else torch.float32, device=x.device)
    if len(x):
        launch(
            kernel,
            (triton.cdiv(len(x), tile.M), triton.cdiv(weight.outputs, tile.N), tile.SPLITS),
            *activations,
            weight.codes,
            weight.scales,
            out,
            len(x),
            weight.outputs,
            x.shape[1],
            x.stride(0),
            tile,
            num_warps=warps_of(tile.M),
            num_stages=STAGES,
        )
    return out[0] if tile.SPLITS == 1 else out.sum(0).to(dtype)
