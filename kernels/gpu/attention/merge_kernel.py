"""Joins the partial results that the attention kernel leaves of rows whose keys were cut apart."""

import triton
import triton.language as tl

from kernels.gpu.attention.prefix_attention_kernel import LOG2_E


@triton.jit
def _joined(acc, top, total, SIZES: tl.constexpr):
    """Sums of all partial results [BLOCK_HEADS, BLOCK_DIM], [BLOCK_HEADS] twice, of those of every n-th of them."""
    PARTIALS: tl.constexpr = SIZES.BLOCK_PARTIALS
    HEADS: tl.constexpr = SIZES.BLOCK_HEADS
    BLOCK_DIM: tl.constexpr = SIZES.BLOCK_DIM
    # [PARTIALS, HEADS], and with BLOCK_DIM behind them
    top, total = tl.reshape(top, (PARTIALS, HEADS)), tl.reshape(total, (PARTIALS, HEADS))
    acc = tl.reshape(acc, (PARTIALS, HEADS, BLOCK_DIM))
    new_top = tl.max(top, 0)
    pivot = tl.where(new_top == float("-inf"), 0.0, new_top)
    weight = tl.exp2(top - pivot[None, :])
    return tl.sum(acc * weight[:, :, None], 0), new_top, tl.sum(total * weight, 0)


@triton.jit
def merge_kernel(out, lse_ptr, partials, tables, sinks_ptr, SIZES: tl.constexpr):
    """Program (i, j) merges the partial results of the i-th row to merge for its j-th heads; of none, zeros.

    A line of its tile takes every `BLOCK_PARTIALS`-th of a head's partial results; LINES are heads times those.
    """
    HEADS: tl.constexpr = SIZES.HEADS
    DIM: tl.constexpr = SIZES.DIM
    BLOCK_DIM: tl.constexpr = SIZES.BLOCK_DIM
    BLOCK_HEADS: tl.constexpr = SIZES.BLOCK_HEADS
    BLOCK_PARTIALS: tl.constexpr = SIZES.BLOCK_PARTIALS
    LINES: tl.constexpr = BLOCK_PARTIALS * BLOCK_HEADS
    index = tl.program_id(0)
    if index >= tl.load(tables.num_rows_ptr):
        return
    # [LINES]
    line = tl.arange(0, LINES)
    head = (tl.program_id(1) * BLOCK_HEADS + line % BLOCK_HEADS).to(tl.int64)
    head_mask = head < HEADS
    # [BLOCK_DIM]
    d = tl.arange(0, BLOCK_DIM)
    row = tl.load(tables.rows_ptr + index).to(tl.int64)
    # [LINES, BLOCK_DIM]
    acc = tl.zeros((LINES, BLOCK_DIM), tl.float32)
    # [LINES]
    top = tl.full((LINES,), float("-inf"), tl.float32)
    total = tl.zeros((LINES,), tl.float32)
    if SIZES.SINKS:
        has_sink = head_mask & (line < BLOCK_HEADS)
        top = tl.where(has_sink, tl.load(sinks_ptr + head, mask=has_sink, other=0).to(tl.float32) * LOG2_E, top)
        total = tl.where(has_sink, 1.0, total)
    end = tl.load(tables.starts_ptr + index + 1)
    for start in range(tl.load(tables.starts_ptr + index), end, BLOCK_PARTIALS):
        # [LINES]
        entry = start + line // BLOCK_HEADS
        mask = head_mask & (entry < end)
        partial_offset = tl.load(tables.partials_ptr + entry, mask=mask, other=0).to(tl.int64) * HEADS + head
        lse = tl.load(partials.lse_ptr + partial_offset, mask=mask, other=float("-inf"))
        # [LINES, BLOCK_DIM]
        value_ptrs = partials.out_ptr + partial_offset[:, None] * DIM + d[None, :]
        value = tl.load(value_ptrs, mask=mask[:, None] & (d[None, :] < DIM), other=0)
        new_top = tl.maximum(top, lse)
        pivot = tl.where(new_top == float("-inf"), 0.0, new_top)
        fade, weight = tl.exp2(top - pivot), tl.exp2(lse - pivot)
        acc = acc * fade[:, None] + value * weight[:, None]
        total = total * fade + weight
        top = new_top
    if BLOCK_PARTIALS > 1:
        acc, top, total = _joined(acc, top, total, SIZES)
    # [BLOCK_HEADS]
    head = (tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)).to(tl.int64)
    head_mask = head < HEADS
    total = tl.where(total > 0, total, 1.0)
    denominator = (top + tl.log2(total)) / LOG2_E
    # [BLOCK_HEADS, BLOCK_DIM]
    result = acc / total[:, None]
    out_ptrs = out.ptr + (row * out.row_stride + head * out.head_stride)[:, None] + d[None, :]
    tl.store(out_ptrs, result.to(out.ptr.dtype.element_ty), mask=head_mask[:, None] & (d[None, :] < DIM))
    tl.store(lse_ptr + row * HEADS + head, denominator, mask=head_mask)
