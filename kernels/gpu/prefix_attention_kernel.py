"""Prefix-shared attention on a GPU: one launch over a plan's work items; `kernels.gpu.merge` joins what was cut.

Query rows are stacked with the heads that share a KV head, so a tile of keys is read once for all of them. Softmax is
in base 2 with a finite pivot; partial results are (output, log2 of the denominator) in float32, which merge exactly.
"""

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def from_e4m3(bits, dtype: tl.constexpr):
    """float8_e4m3fn times 2^-8, exactly, on any hardware: its bits are those of a float16 with another bias."""
    wide = bits.to(tl.uint16)
    half = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    return half.to(tl.float16, bitcast=True).to(dtype)


@triton.jit
def _tile(
    ptrs,
    inside,
    d,
    dtype: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    MASKED: tl.constexpr,
    FP8: tl.constexpr,
):
    """Keys or values by dimensions `d`, as `dtype`; `PADDED` where some of `d` are not below `DIM`."""
    if MASKED:
        tile = tl.load(ptrs, mask=inside[:, None] & (d[None, :] < DIM), other=0)
    elif PADDED:
        tile = tl.load(ptrs, mask=d[None, :] < DIM, other=0)
    else:
        tile = tl.load(ptrs)
    return from_e4m3(tile, dtype) if FP8 else tile


@triton.jit
def _attend_blocks(
    q,
    q_rest,
    acc,
    acc_rest,
    top,
    total,
    row_position,
    key_base,
    value_base,
    table,
    start,
    end,
    position,
    window,
    factor,
    cap_factor,
    block_stride,
    slot_stride,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    REST_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    MASKED: tl.constexpr,
    CAPPED: tl.constexpr,
    FP8: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One piece of keys: `acc` (M, BLOCK_DIM) and `total` (M,) are sums of 2^(score - top), in float32.

    With `REST_DIM`, `q_rest` and `acc_rest` (M, REST_DIM) are the dimensions behind `BLOCK_DIM`.
    """
    d = tl.arange(0, BLOCK_DIM)
    padded: tl.constexpr = DIM < BLOCK_DIM
    key = start + tl.arange(0, KEYS)
    # Block ids come one turn of the loop ahead: a load whose address waits for another load is not pipelined as deep.
    page = tl.load(table + key // PAGE, mask=key < end, other=0)
    for _ in range(start, end, KEYS):
        inside = key < end
        place = page.to(tl.int64) * block_stride + key % PAGE * slot_stride
        ahead = key + KEYS
        page = tl.load(table + ahead // PAGE, mask=ahead < end, other=0)
        k_ptrs, v_ptrs = key_base + place[:, None], value_base + place[:, None]
        k = _tile(k_ptrs + d[None, :], inside, d, q.dtype, DIM, padded, MASKED, FP8)
        v = _tile(v_ptrs + d[None, :], inside, d, q.dtype, DIM, padded, MASKED, FP8)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if REST_DIM:
            r = BLOCK_DIM + tl.arange(0, REST_DIM)
            k_rest = _tile(k_ptrs + r[None, :], inside, r, q.dtype, DIM, False, MASKED, FP8)
            v_rest = _tile(v_ptrs + r[None, :], inside, r, q.dtype, DIM, False, MASKED, FP8)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision=PRECISION)
        if CAPPED:
            # tanh, by an exponential that saturates at both ends.
            scores = 1 - 2 / (1 + tl.exp2(scores * cap_factor))
        if MASKED:
            # One unsigned comparison says both: not after the row, and within its window.
            distance = (row_position[:, None] - (position + key)[None, :]).to(tl.uint32, bitcast=True)
            scores = tl.where(inside[None, :] & (distance < window), scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * factor)
        pivot = new_top
        if MASKED:
            # A row that has read nothing yet has no finite maximum, and inf - inf is no number.
            pivot = tl.where(new_top == float("-inf"), 0.0, new_top)
        p = tl.exp2(scores * factor - pivot[:, None])
        fade = tl.exp2(top - pivot)
        total = total * fade + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
        if REST_DIM:
            acc_rest = tl.dot(p.to(v.dtype), v_rest, acc_rest * fade[:, None], input_precision=PRECISION)
        top = new_top
        key = ahead
    return acc, acc_rest, top, total


@triton.jit
def _attend_item(
    row_start,
    rows,
    piece_start,
    piece_end,
    partial,
    kv_head,
    slice_index,
    query,
    step_key,
    step_value,
    key_cache,
    value_cache,
    out,
    lse,
    partial_out,
    partial_lse,
    pieces,
    table,
    positions,
    sinks,
    window,
    factor,
    cap_factor,
    value_factor,
    query_row,
    query_head,
    step_row,
    step_head,
    cache_block,
    cache_slot,
    cache_head,
    out_row,
    out_head,
    M: tl.constexpr,
    ALWAYS_MASKED: tl.constexpr,
    KEYS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SLICE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    REST_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    FP8: tl.constexpr,
    PRECISION: tl.constexpr,
):
    m = tl.arange(0, M)
    d = tl.arange(0, BLOCK_DIM)
    in_group = slice_index * SLICE + m % SLICE
    head = kv_head * GROUP + in_group
    real = (m // SLICE < rows) & (in_group < GROUP)
    row = row_start + m // SLICE
    row_position = tl.load(positions + row, mask=real, other=-1)
    row = row.to(tl.int64)
    cell = real[:, None] & (d[None, :] < DIM)
    q_ptrs = query + (row * query_row + head.to(tl.int64) * query_head)[:, None]
    q = tl.load(q_ptrs + d[None, :], mask=cell, other=0)
    acc = tl.zeros((M, BLOCK_DIM), tl.float32)
    q_rest, acc_rest = q, acc
    if REST_DIM:
        r = BLOCK_DIM + tl.arange(0, REST_DIM)
        q_rest = tl.load(q_ptrs + r[None, :], mask=real[:, None], other=0)
        acc_rest = tl.zeros((M, REST_DIM), tl.float32)
    top = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    # A plan may hold keys that a lone row has yet to reach: they are not there, and what lies there may be no number.
    farthest = tl.max(row_position, 0)
    for index in range(piece_start, piece_end):
        piece = pieces + index * 6
        first = table + tl.load(piece)
        start = tl.load(piece + 1)
        whole = tl.load(piece + 2)
        position = tl.load(piece + 4)
        end = tl.load(piece + 3)
        if ALWAYS_MASKED:
            end = tl.minimum(end, farthest + 1 - position)
        key_base = key_cache + kv_head.to(tl.int64) * cache_head
        value_base = value_cache + kv_head.to(tl.int64) * cache_head
        block_stride, slot_stride = cache_block, cache_slot
        if tl.load(piece + 5) == 1:
            key_base = step_key + kv_head.to(tl.int64) * step_head
            value_base = step_value + kv_head.to(tl.int64) * step_head
            block_stride, slot_stride = step_row * PAGE, step_row
        # One loop behind the other, not one or the other: two branches would not share their buffers.
        if not ALWAYS_MASKED:
            acc, acc_rest, top, total = _attend_blocks(
                q, q_rest, acc, acc_rest, top, total, row_position, key_base, value_base, first, start, whole, position,
                window, factor, cap_factor, block_stride, slot_stride, KEYS, DIM, BLOCK_DIM, REST_DIM, PAGE, False,
                CAPPED, FP8, PRECISION,
            )  # fmt: skip
        acc, acc_rest, top, total = _attend_blocks(
            q, q_rest, acc, acc_rest, top, total, row_position, key_base, value_base, first, whole, end, position,
            window, factor, cap_factor, block_stride, slot_stride, KEYS, DIM, BLOCK_DIM, REST_DIM, PAGE, True, CAPPED,
            FP8, PRECISION,
        )  # fmt: skip
    if SINKS:  # noqa: SIM102  # known when compiled, unlike the other
        if partial < 0:
            sink = tl.load(sinks + head, mask=real, other=0).to(tl.float32) * LOG2_E
            whole = tl.maximum(top, sink)
            total = total * tl.exp2(top - whole) + tl.exp2(sink - whole)
            acc = acc * tl.exp2(top - whole)[:, None]
            acc_rest = acc_rest * tl.exp2(top - whole)[:, None]
            top = whole
    # Rows that read nothing have a sum of 0 and a top of -inf: they give 0 and -inf, and no division by 0.
    total = tl.where(total > 0, total, 1.0)
    result = acc * (value_factor / total)[:, None]
    rest = acc_rest * (value_factor / total)[:, None]
    denominator = top + tl.log2(total)
    if partial < 0:
        target = out + (row * out_row + head.to(tl.int64) * out_head)[:, None]
        tl.store(target + d[None, :], result.to(out.dtype.element_ty), mask=cell)
        if REST_DIM:
            tl.store(target + r[None, :], rest.to(out.dtype.element_ty), mask=real[:, None])
        tl.store(lse + row * HEADS + head, denominator / LOG2_E, mask=real)
    else:
        place = (partial + m // SLICE).to(tl.int64) * HEADS + head
        tl.store(partial_out + place[:, None] * DIM + d[None, :], result, mask=cell)
        if REST_DIM:
            tl.store(partial_out + place[:, None] * DIM + r[None, :], rest, mask=real[:, None])
        tl.store(partial_lse + place, denominator, mask=real)


@triton.jit(do_not_specialize=["window"])
def attend_kernel(
    query,
    step_key,
    step_value,
    key_cache,
    value_cache,
    out,
    lse,
    partial_out,
    partial_lse,
    items,
    pieces,
    table,
    positions,
    sinks,
    key_scales,
    value_scales,
    num_items,
    window,
    scale,
    softcap,
    query_row,
    query_head,
    step_row,
    step_head,
    cache_block,
    cache_slot,
    cache_head,
    out_row,
    out_head,
    NARROW: tl.constexpr,
    WIDE: tl.constexpr,
    KEYS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SLICE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    REST_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    FP8: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program i runs item i // slices for slice i % slices of the KV heads' groups (`SLICE` heads of `GROUP` each).

    `NARROW` or `WIDE` is 0 where a plan has no such item, so that neither registers nor code are spent on it. Items
    are read behind `num_items`, which lies in device memory: a captured graph may launch more programs than a plan has.
    """
    slices_a_head: tl.constexpr = (GROUP + SLICE - 1) // SLICE
    slices: tl.constexpr = HEADS // GROUP * slices_a_head
    program = tl.program_id(0)
    index = program // slices
    if index >= tl.load(num_items):
        return
    kv_head = program % slices // slices_a_head
    slice_index = program % slices_a_head
    item = items + index * 6
    row_start = tl.load(item)
    rows = tl.load(item + 1)
    piece_start = tl.load(item + 2)
    piece_end = tl.load(item + 3)
    partial = tl.load(item + 4)
    wide = tl.load(item + 5)
    value_factor = 1.0
    if FP8:
        scale *= tl.load(key_scales + kv_head) * 256.0
        value_factor = tl.load(value_scales + kv_head) * 256.0
    factor = scale * LOG2_E
    cap_factor = 0.0
    if CAPPED:
        cap_factor = 2 * LOG2_E * scale / softcap
        factor = softcap * LOG2_E
    if NARROW and (not WIDE or wide == 0):
        _attend_item(
            row_start, rows, piece_start, piece_end, partial, kv_head, slice_index, query, step_key, step_value,
            key_cache, value_cache, out, lse, partial_out, partial_lse, pieces, table, positions, sinks, window, factor,
            cap_factor, value_factor, query_row, query_head, step_row, step_head, cache_block, cache_slot, cache_head,
            out_row, out_head,
            NARROW, True, KEYS, HEADS, GROUP, SLICE, DIM, BLOCK_DIM, REST_DIM, PAGE, CAPPED, SINKS, FP8, PRECISION,
        )  # fmt: skip
    if WIDE and (not NARROW or wide == 1):
        _attend_item(
            row_start, rows, piece_start, piece_end, partial, kv_head, slice_index, query, step_key, step_value,
            key_cache, value_cache, out, lse, partial_out, partial_lse, pieces, table, positions, sinks, window, factor,
            cap_factor, value_factor, query_row, query_head, step_row, step_head, cache_block, cache_slot, cache_head,
            out_row, out_head,
            WIDE, False, KEYS, HEADS, GROUP, SLICE, DIM, BLOCK_DIM, REST_DIM, PAGE, CAPPED, SINKS, FP8, PRECISION,
        )  # fmt: skip
