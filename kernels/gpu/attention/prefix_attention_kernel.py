"""Attention over shared prefixes: one launch over a step's work items; `merge_kernel` joins what was cut.

Query rows are stacked with the heads that share a KV head, so a tile of keys is read once for all of them. Softmax is
in base 2 with a finite pivot; partial results are (output, log2 of the denominator) in float32, which merge exactly.
Shapes are of a tile: M stacked query rows, KEYS keys, BLOCK_DIM and REST_DIM dimensions.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from kernels.gpu.attention.kernel_arguments import CacheKV, HeadRows, StepKV

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


class _Item(NamedTuple):
    """A work item, in the order of `ItemField`; `partial` is -1 where it writes the result itself."""

    row_start: Any
    rows: Any
    piece_start: Any
    piece_end: Any
    partial: Any


class _Queries(NamedTuple):
    """A tile of queries: q [M, BLOCK_DIM], rest [M, REST_DIM]; position [M], where its rows stand, and the farthest."""

    q: Any
    rest: Any
    position: Any
    farthest: Any


class _Sums(NamedTuple):
    """acc [M, BLOCK_DIM], rest [M, REST_DIM] and total [M] are sums of 2^(score - top [M]), in float32."""

    acc: Any
    rest: Any
    top: Any
    total: Any


class _Keys(NamedTuple):
    """Where a piece's keys and values are for one KV head, and the `position` of its key 0."""

    key_ptr: Any
    value_ptr: Any
    table_ptr: Any
    block_stride: Any
    slot_stride: Any
    position: Any


class _Scaling(NamedTuple):
    """Factors of scores and values, with log2(e) in them; keys at a distance of `window` are not read."""

    factor: Any
    cap_factor: Any
    value_factor: Any
    window: Any


class _RowsOf(NamedTuple):
    """The tensors of a layer with their strides."""

    query: Any
    step: Any
    cache: Any
    out: Any


class _Rows(NamedTuple):
    """The row, the head and the program's share of both [M]; `mask` where they are real."""

    row: Any
    head: Any
    in_item: Any
    mask: Any


@triton.jit
def from_e4m3(bits, dtype: tl.constexpr):
    """float8_e4m3fn times 2^-8, exactly, on any hardware: its bits are those of a float16 with another bias."""
    wide = bits.to(tl.int8, bitcast=True).to(tl.int16).to(tl.uint16, bitcast=True)
    half = (wide << 7) & 0xBFFF
    # One more than the last code is a power of two, whose bit makes NaN of NaN's code alone.
    half |= (half + 0x80) & 0x4000
    return half.to(tl.float16, bitcast=True).to(dtype)


@triton.jit
def _load_tile(ptrs, key_mask, d, dtype: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr, SIZES: tl.constexpr):
    """Keys or values [KEYS, dimensions `d`] as `dtype`; `PADDED` where some of `d` are not below `DIM`."""
    if MASKED:
        tile = tl.load(ptrs, mask=key_mask[:, None] & (d[None, :] < SIZES.DIM), other=0)
    elif PADDED:
        tile = tl.load(ptrs, mask=d[None, :] < SIZES.DIM, other=0)
    else:
        tile = tl.load(ptrs)
    return from_e4m3(tile, dtype) if SIZES.FP8 else tile


@triton.jit
def _attend_blocks(queries, sums, keys, start, end, scaling, MASKED: tl.constexpr, SIZES: tl.constexpr):
    """`sums` with the keys `[start, end)` of a piece."""
    KEYS: tl.constexpr = SIZES.KEYS
    PAGE: tl.constexpr = SIZES.PAGE
    REST_DIM: tl.constexpr = SIZES.REST_DIM
    padded: tl.constexpr = SIZES.DIM < SIZES.BLOCK_DIM
    q, q_rest, row_position = queries.q, queries.rest, queries.position
    acc, acc_rest, top, total = sums
    # [BLOCK_DIM]
    d = tl.arange(0, SIZES.BLOCK_DIM)
    # [KEYS]
    key = start + tl.arange(0, KEYS)
    # Block ids come one turn of the loop ahead: a load whose address waits for another load is not pipelined as deep.
    block = tl.load(keys.table_ptr + key // PAGE, mask=key < end, other=0)
    for _ in range(start, end, KEYS):
        key_mask = key < end
        offset = block.to(tl.int64) * keys.block_stride + key % PAGE * keys.slot_stride
        ahead = key + KEYS
        block = tl.load(keys.table_ptr + ahead // PAGE, mask=ahead < end, other=0)
        k_ptrs, v_ptrs = keys.key_ptr + offset[:, None], keys.value_ptr + offset[:, None]
        # [KEYS, BLOCK_DIM]
        k = _load_tile(k_ptrs + d[None, :], key_mask, d, q.dtype, padded, MASKED, SIZES)
        v = _load_tile(v_ptrs + d[None, :], key_mask, d, q.dtype, padded, MASKED, SIZES)
        # [M, KEYS]
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if REST_DIM:
            r = SIZES.BLOCK_DIM + tl.arange(0, REST_DIM)
            # [KEYS, REST_DIM]
            k_rest = _load_tile(k_ptrs + r[None, :], key_mask, r, q.dtype, False, MASKED, SIZES)
            v_rest = _load_tile(v_ptrs + r[None, :], key_mask, r, q.dtype, False, MASKED, SIZES)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
        if SIZES.CAPPED:
            # tanh, by an exponential that saturates at both ends.
            scores = 1 - 2 / (1 + tl.exp2(scores * scaling.cap_factor))
        if MASKED:
            # One unsigned comparison says both: not after the row, and within its window.
            distance = (row_position[:, None] - (keys.position + key)[None, :]).to(tl.uint32, bitcast=True)
            scores = tl.where(key_mask[None, :] & (distance < scaling.window), scores, float("-inf"))
        # [M]
        new_top = tl.maximum(top, tl.max(scores, 1) * scaling.factor)
        pivot = new_top
        if MASKED:
            # A row that has read nothing yet has no finite maximum, and inf - inf is no number.
            pivot = tl.where(new_top == float("-inf"), 0.0, new_top)
        # [M, KEYS]
        p = tl.exp2(scores * scaling.factor - pivot[:, None])
        fade = tl.exp2(top - pivot)
        total = total * fade + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
        if REST_DIM:
            acc_rest = tl.dot(p.to(v.dtype), v_rest, acc_rest * fade[:, None], input_precision="ieee")
        top = new_top
        key = ahead
    return _Sums(acc, acc_rest, top, total)


@triton.jit
def _load_queries(query, rows, positions_ptr, M: tl.constexpr, SIZES: tl.constexpr):
    """The tile's queries, and sums of nothing."""
    BLOCK_DIM: tl.constexpr = SIZES.BLOCK_DIM
    REST_DIM: tl.constexpr = SIZES.REST_DIM
    # [BLOCK_DIM]
    d = tl.arange(0, BLOCK_DIM)
    position = tl.load(positions_ptr + rows.row, mask=rows.mask, other=-1)
    row = rows.row.to(tl.int64)
    # [M, BLOCK_DIM]
    cell_mask = rows.mask[:, None] & (d[None, :] < SIZES.DIM)
    q_ptrs = query.ptr + (row * query.row_stride + rows.head.to(tl.int64) * query.head_stride)[:, None]
    q = tl.load(q_ptrs + d[None, :], mask=cell_mask, other=0)
    acc = tl.zeros((M, BLOCK_DIM), tl.float32)
    q_rest, acc_rest = q, acc
    if REST_DIM:
        r = BLOCK_DIM + tl.arange(0, REST_DIM)
        q_rest = tl.load(q_ptrs + r[None, :], mask=rows.mask[:, None], other=0)
        acc_rest = tl.zeros((M, REST_DIM), tl.float32)
    top = tl.full((M,), float("-inf"), tl.float32)
    return _Queries(q, q_rest, position, tl.max(position, 0)), _Sums(acc, acc_rest, top, tl.zeros((M,), tl.float32))


@triton.jit
def _attend_piece(
    piece_ptr, block_table_ptr, queries, sums, rows_of, kv_head, scaling, SMALL: tl.constexpr, SIZES: tl.constexpr
):
    """`sums` with a piece's keys: whole blocks without a mask, then the others; in a small tile all are masked."""
    step, cache = rows_of.step, rows_of.cache
    table_ptr = block_table_ptr + tl.load(piece_ptr)
    start = tl.load(piece_ptr + 1)
    whole = tl.load(piece_ptr + 2)
    position = tl.load(piece_ptr + 4)
    end = tl.load(piece_ptr + 3)
    if SMALL:
        # Work items may hold keys that a lone row has yet to reach: what lies there may be no number.
        end = tl.minimum(end, queries.farthest + 1 - position)
    key_ptr = cache.key_ptr + kv_head.to(tl.int64) * cache.head_stride
    value_ptr = cache.value_ptr + kv_head.to(tl.int64) * cache.head_stride
    block_stride, slot_stride = cache.block_stride, cache.slot_stride
    if tl.load(piece_ptr + 5) == 1:
        key_ptr = step.key_ptr + kv_head.to(tl.int64) * step.head_stride
        value_ptr = step.value_ptr + kv_head.to(tl.int64) * step.head_stride
        block_stride, slot_stride = step.row_stride * SIZES.PAGE, step.row_stride
    keys = _Keys(key_ptr, value_ptr, table_ptr, block_stride, slot_stride, position)
    # One loop behind the other, not one or the other: two branches would not share their buffers.
    if not SMALL:
        sums = _attend_blocks(queries, sums, keys, start, whole, scaling, False, SIZES)
    return _attend_blocks(queries, sums, keys, whole, end, scaling, True, SIZES)


@triton.jit
def _with_sinks(sums, sinks_ptr, rows):
    """`sums` with one more logit a head, which has no value."""
    acc, acc_rest, top, total = sums
    sink = tl.load(sinks_ptr + rows.head, mask=rows.mask, other=0).to(tl.float32) * LOG2_E
    new_top = tl.maximum(top, sink)
    fade = tl.exp2(top - new_top)
    total = total * fade + tl.exp2(sink - new_top)
    return _Sums(acc * fade[:, None], acc_rest * fade[:, None], new_top, total)


@triton.jit
def _store(sums, out, lse_ptr, partials, partial, rows, value_factor, SIZES: tl.constexpr):
    """Writes means and denominators: as the result, or as partial rows from `partial` on."""
    row, head, in_item, mask = rows.row.to(tl.int64), rows.head, rows.in_item, rows.mask
    # Rows that read nothing have a sum of 0 and a top of -inf: they give 0 and -inf, and no division by 0.
    total = tl.where(sums.total > 0, sums.total, 1.0)
    result = sums.acc * (value_factor / total)[:, None]
    rest = sums.rest * (value_factor / total)[:, None]
    denominator = sums.top + tl.log2(total)
    # [BLOCK_DIM]
    d = tl.arange(0, SIZES.BLOCK_DIM)
    # [M, BLOCK_DIM]
    cell_mask = mask[:, None] & (d[None, :] < SIZES.DIM)
    if partial < 0:
        out_ptrs = out.ptr + (row * out.row_stride + head.to(tl.int64) * out.head_stride)[:, None]
        tl.store(out_ptrs + d[None, :], result.to(out.ptr.dtype.element_ty), mask=cell_mask)
        if SIZES.REST_DIM:
            r = SIZES.BLOCK_DIM + tl.arange(0, SIZES.REST_DIM)
            tl.store(out_ptrs + r[None, :], rest.to(out.ptr.dtype.element_ty), mask=mask[:, None])
        tl.store(lse_ptr + row * SIZES.HEADS + head, denominator / LOG2_E, mask=mask)
    else:
        offset = (partial + in_item).to(tl.int64) * SIZES.HEADS + head
        tl.store(partials.out_ptr + offset[:, None] * SIZES.DIM + d[None, :], result, mask=cell_mask)
        if SIZES.REST_DIM:
            r = SIZES.BLOCK_DIM + tl.arange(0, SIZES.REST_DIM)
            tl.store(partials.out_ptr + offset[:, None] * SIZES.DIM + r[None, :], rest, mask=mask[:, None])
        tl.store(partials.lse_ptr + offset, denominator, mask=mask)


@triton.jit
def _attend_item(
    item, kv_head, slice_index, rows_of, results, tables, sinks_ptr, scaling, M: tl.constexpr, SMALL: tl.constexpr,
    SIZES: tl.constexpr,
):  # fmt: skip
    """One item for one slice of a KV head's query heads, in a tile of `M` stacked rows."""
    # [M]
    m = tl.arange(0, M)
    in_item = m // SIZES.SLICE
    in_group = slice_index * SIZES.SLICE + m % SIZES.SLICE
    head = kv_head * SIZES.GROUP + in_group
    mask = (in_item < item.rows) & (in_group < SIZES.GROUP)
    rows = _Rows(item.row_start + in_item, head, in_item, mask)
    queries, sums = _load_queries(rows_of.query, rows, tables.positions_ptr, M, SIZES)
    for index in range(item.piece_start, item.piece_end):
        piece_ptr = tables.pieces_ptr + index * 6
        sums = _attend_piece(piece_ptr, tables.block_table_ptr, queries, sums, rows_of, kv_head, scaling, SMALL, SIZES)
    if SIZES.SINKS:  # noqa: SIM102  # known when compiled, unlike the other
        if item.partial < 0:
            sums = _with_sinks(sums, sinks_ptr, rows)
    _store(sums, rows_of.out, results.lse_ptr, results.partials, item.partial, rows, scaling.value_factor, SIZES)


@triton.jit(do_not_specialize=["window"])
def attend_kernel(
    reads,
    results,
    tables,
    sinks_ptr,
    kv_scales,
    num_items_ptr,
    window,
    scale,
    softcap,
    strides,
    TILES: tl.constexpr,
    SIZES: tl.constexpr,
):
    """Program i runs item i // slices for slice i % slices of the KV heads' groups (`SLICE` heads of `GROUP` each).

    A tile of `TILES` is 0 where no item has it, so that neither registers nor code are spent on it. Items are read
    behind `num_items`, which lies in device memory: a captured graph may launch more programs than a step has items.
    Pointers come first and strides last, since ptxas gives registers by it: with every stride beside its pointer it
    takes 177 in place of 167 (sm_90, heads of 64), and one program less fits a processor.
    """
    SMALL: tl.constexpr = TILES.SMALL
    LARGE: tl.constexpr = TILES.LARGE
    slices_a_head: tl.constexpr = (SIZES.GROUP + SIZES.SLICE - 1) // SIZES.SLICE
    slices: tl.constexpr = SIZES.HEADS // SIZES.GROUP * slices_a_head
    program = tl.program_id(0)
    index = program // slices
    if index >= tl.load(num_items_ptr):
        return
    kv_head = program % slices // slices_a_head
    slice_index = program % slices_a_head
    item_ptr = tables.items_ptr + index * 6
    item = _Item(
        tl.load(item_ptr), tl.load(item_ptr + 1), tl.load(item_ptr + 2), tl.load(item_ptr + 3), tl.load(item_ptr + 4)
    )
    is_large = tl.load(item_ptr + 5)
    value_factor = 1.0
    if SIZES.FP8:
        scale *= tl.load(kv_scales.key_ptr + kv_head) * 256.0
        value_factor = tl.load(kv_scales.value_ptr + kv_head) * 256.0
    factor = scale * LOG2_E
    cap_factor = 0.0
    if SIZES.CAPPED:
        cap_factor = 2 * LOG2_E * scale / softcap
        factor = softcap * LOG2_E
    scaling = _Scaling(factor, cap_factor, value_factor, window)
    rows_of = _RowsOf(
        HeadRows(reads.query_ptr, strides.query_row, strides.query_head),
        StepKV(reads.step.key_ptr, reads.step.value_ptr, strides.step_row, strides.step_head),
        CacheKV(
            reads.cache.key_ptr, reads.cache.value_ptr, strides.cache_block, strides.cache_slot, strides.cache_head
        ),
        HeadRows(results.out_ptr, strides.out_row, strides.out_head),
    )
    if SMALL and (not LARGE or is_large == 0):
        _attend_item(item, kv_head, slice_index, rows_of, results, tables, sinks_ptr, scaling, SMALL, True, SIZES)
    if LARGE and (not SMALL or is_large == 1):
        _attend_item(item, kv_head, slice_index, rows_of, results, tables, sinks_ptr, scaling, LARGE, False, SIZES)
