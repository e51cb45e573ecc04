"""Joins the partial results that `kernels.gpu.prefix_attention_kernel` leaves of rows whose keys were cut apart."""

import triton
import triton.language as tl

from kernels.gpu.prefix_attention_kernel import LOG2_E


@triton.jit
def merge_kernel(
    out,
    lse,
    partial_out,
    partial_lse,
    rows,
    starts,
    partials,
    sinks,
    num_rows,
    out_row,
    out_head,
    HEADS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    SINKS: tl.constexpr,
):
    """Program (i, j) merges the partial results of row `rows[i]` for its j-th `BLOCK_HEADS` heads; of none, zeros."""
    index = tl.program_id(0)
    if index >= tl.load(num_rows):
        return
    head = (tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)).to(tl.int64)
    d = tl.arange(0, BLOCK_DIM)
    real = head < HEADS
    cell = real[:, None] & (d[None, :] < DIM)
    row = tl.load(rows + index).to(tl.int64)
    acc = tl.zeros((BLOCK_HEADS, BLOCK_DIM), tl.float32)
    top = tl.full((BLOCK_HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_HEADS,), tl.float32)
    if SINKS:
        top = tl.load(sinks + head, mask=real, other=0).to(tl.float32) * LOG2_E
        total += 1.0
    for entry in range(tl.load(starts + index), tl.load(starts + index + 1)):
        place = tl.load(partials + entry).to(tl.int64) * HEADS + head
        other = tl.load(partial_lse + place, mask=real, other=float("-inf"))
        value = tl.load(partial_out + place[:, None] * DIM + d[None, :], mask=cell, other=0)
        new_top = tl.maximum(top, other)
        pivot = tl.where(new_top == float("-inf"), 0.0, new_top)
        fade, weight = tl.exp2(top - pivot), tl.exp2(other - pivot)
        acc = acc * fade[:, None] + value * weight[:, None]
        total = total * fade + weight
        top = new_top
    total = tl.where(total > 0, total, 1.0)
    denominator = (top + tl.log2(total)) / LOG2_E
    result = acc / total[:, None]
    tl.store(out + (row * out_row + head * out_head)[:, None] + d[None, :], result.to(out.dtype.element_ty), mask=cell)
    tl.store(lse + row * HEADS + head, denominator, mask=real)
