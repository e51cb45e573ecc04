"""Joins the partial results that the attention kernel leaves of rows whose keys were cut apart."""

import triton
import triton.language as tl

from kernels.gpu.attention.prefix_attention_kernel import LOG2_E


@triton.jit
def merge_kernel(out, lse_ptr, partials, tables, sinks_ptr, SIZES: tl.constexpr):
    """Program (i, j) merges the partial results of the i-th row to merge for its j-th heads; of none, zeros."""
    HEADS: tl.constexpr = SIZES.HEADS
    BLOCK_HEADS: tl.constexpr = SIZES.BLOCK_HEADS
    DIM: tl.constexpr = SIZES.DIM
    BLOCK_DIM: tl.constexpr = SIZES.BLOCK_DIM
    index = tl.program_id(0)
    if index >= tl.load(tables.num_rows_ptr):
        return
    # [BLOCK_HEADS]
    head = (tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)).to(tl.int64)
    # [BLOCK_DIM]
    d = tl.arange(0, BLOCK_DIM)
    head_mask = head < HEADS
    # [BLOCK_HEADS, BLOCK_DIM]
    mask = head_mask[:, None] & (d[None, :] < DIM)
    row = tl.load(tables.rows_ptr + index).to(tl.int64)
    # [BLOCK_HEADS, BLOCK_DIM]
    acc = tl.zeros((BLOCK_HEADS, BLOCK_DIM), tl.float32)
    # [BLOCK_HEADS]
    top = tl.full((BLOCK_HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_HEADS,), tl.float32)
    if SIZES.SINKS:
        top = tl.load(sinks_ptr + head, mask=head_mask, other=0).to(tl.float32) * LOG2_E
        total += 1.0
    for entry in range(tl.load(tables.starts_ptr + index), tl.load(tables.starts_ptr + index + 1)):
        # [BLOCK_HEADS]
        partial_offset = tl.load(tables.partials_ptr + entry).to(tl.int64) * HEADS + head
        lse = tl.load(partials.lse_ptr + partial_offset, mask=head_mask, other=float("-inf"))
        # [BLOCK_HEADS, BLOCK_DIM]
        value = tl.load(partials.out_ptr + partial_offset[:, None] * DIM + d[None, :], mask=mask, other=0)
        new_top = tl.maximum(top, lse)
        pivot = tl.where(new_top == float("-inf"), 0.0, new_top)
        fade, weight = tl.exp2(top - pivot), tl.exp2(lse - pivot)
        acc = acc * fade[:, None] + value * weight[:, None]
        total = total * fade + weight
        top = new_top
    total = tl.where(total > 0, total, 1.0)
    denominator = (top + tl.log2(total)) / LOG2_E
    result = acc / total[:, None]
    out_ptrs = out.ptr + (row * out.row_stride + head * out.head_stride)[:, None] + d[None, :]
    tl.store(out_ptrs, result.to(out.ptr.dtype.element_ty), mask=mask)
    tl.store(lse_ptr + row * HEADS + head, denominator, mask=head_mask)
