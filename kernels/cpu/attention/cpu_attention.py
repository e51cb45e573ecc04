"""Attention over segments of KV that rows share, on the CPU: one call a layer for everything that a step attends to.

Rows are packed depth first by prefix node, so each segment (a run of KV) is read by consecutive rows. A tile is a few
consecutive rows and the query heads of one KV head; its queries are the lanes of vectors, and every key is broadcast
to all of them. So a shared key is read once for all rows of a tile, softmax needs no sum across a vector, and segments
of any number of levels follow each other in one online softmax (Milakov & Gimelshein, arXiv 1805.02867; BatchLLM,
arXiv 2412.03594, section 5, launches prefix and own parts apart and merges).
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.attention.attention_block import LN2, LOG2E, make_block
from kernels.cpu.attention.attention_plan import AttentionPlan
from kernels.cpu.attention.attention_scratch import KEYS, MAX_QUERIES, MAX_VECTORS, scratch_for
from kernels.cpu.attention.byte_kv import pack_values, quantize_queries, read_scales, row_size
from kernels.cpu.attention.row_block import CHUNK, row_block
from kernels.cpu.attention.softmax import LEAST
from kernels.cpu.language.arguments import AT_ZERO, Counter, reader
from kernels.cpu.language.jit import FASTMATH, njit
from kernels.cpu.language.openmp import (
    Loop,
    Recording,
    bfloat16_bits,
    exp,
    float32_at,
    int32_at,
    int64_at,
    next_of,
    uint16_at,
)
from kernels.cpu.language.transpose import transpose
from kernels.cpu.language.vectors import WIDTH, from_bfloat16, interleave, part_pairs, to_bfloat16
from kernels.kv_format import BFLOAT16, FLOAT32, INT8_ROWS, kv_format_of
from kernels.kv_format import CHUNK as BYTE_CHUNK
from kernels.processor import NATIVE_BFLOAT16, takes_bytes
from kernels.segments import NO_WINDOW, Ints


class AttentionArguments(NamedTuple):
    query: Tensor
    out: Tensor
    cache_keys: Tensor
    cache_values: Tensor
    own_keys: Tensor
    own_values: Tensor
    sinks: Tensor | None
    positions: Ints  # the plan's arrays
    segments: Ints
    tiles: Ints
    tile_offsets: Ints
    tile_segments: Ints
    num_tiles: int
    num_segments: int
    rows: int
    heads: int
    kv_heads: int
    dim: int
    query_row: int  # strides, in elements
    query_head: int
    out_row: int
    out_head: int
    cache_head: int  # bytes between heads
    own_head: int
    window: int
    per_word: int
    scale: float
    softcap: float
    query_is_bfloat16: bool
    out_is_bfloat16: bool
    units_taken: Counter = AT_ZERO


_read = reader(AttentionArguments)
_block_1, _block_2, _block_3 = make_block(1), make_block(2), make_block(3)


def cpu_attention_takes(query: Tensor, keys: Tensor) -> bool:
    """Whether it is compiled here: on the CPU, for float32, or for keys in bfloat16 or bytes and a `dim` that fits."""
    if query.device.type != "cpu" or not LOOP.available:
        return False
    kept = kv_format_of(keys.dtype)
    if kept == BFLOAT16:
        return query.dtype in (torch.float32, torch.bfloat16) and keys.shape[2] % 2 == 0
    return query.dtype == torch.float32 and kept in (FLOAT32, INT8_ROWS)


def cpu_attention(
    plan: AttentionPlan,
    query: Tensor,
    cache: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    scale: float,
    out: Tensor,
    *,
    window: int | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """query, out (rows, heads, dim) in float32 or bfloat16 each; cache, own: keys and values (kv_heads, slots, dim).

    Keys and values are float32 or bfloat16, contiguous within a head; bfloat16 takes an even `dim`, and queries are
    then rounded to it. Or they are rows of `byte_kv` (kv_heads, slots, dim + 4), where it takes `dim`; queries are then
    rounded to 255 steps, and weights too where several rows read a key. That takes no `softcap`. Scores and
    sums are float32. `softcap` 0.0 is none; `sinks` (heads,) float32.
    """
    rows, heads, dim = query.shape
    keys = cache[0]
    kv_heads, kept = keys.shape[0], kv_format_of(keys.dtype)
    per_word = 4 // kept.itemsize
    assert query.dtype in (torch.float32, torch.bfloat16), query.dtype
    assert query.stride(2) == out.stride(2) == 1
    assert out.dtype in (torch.float32, torch.bfloat16), out.dtype
    if kept == INT8_ROWS:
        assert takes_bytes(dim), dim
        assert query.dtype == torch.float32, query.dtype
        assert not softcap, softcap
    for tensor in (*cache, *own):
        assert tensor.dtype == keys.dtype
        assert tensor.stride()[1:] == (kept.row_width(dim), 1), tensor.stride()
    LOOP(
        query=query,
        out=out,
        cache_keys=keys,
        cache_values=cache[1],
        own_keys=own[0],
        own_values=own[1],
        sinks=sinks,
        rows=rows,
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        query_row=query.stride(0),
        query_head=query.stride(1),
        out_row=out.stride(0),
        out_head=out.stride(1),
        cache_head=kept.itemsize * keys.stride(0),
        own_head=kept.itemsize * own[0].stride(0),
        window=NO_WINDOW if window is None else window,
        per_word=per_word,
        scale=float(scale),
        softcap=float(softcap),
        query_is_bfloat16=query.dtype == torch.bfloat16,
        out_is_bfloat16=out.dtype == torch.bfloat16,
        **_of_plan(plan),
    )
    return out


@njit(error_model="numpy")
def _pack_queries(
    query: int,
    is_bfloat16: int,
    row: int,
    rows: int,
    row_stride: int,
    head: int,
    head_stride: int,
    group: int,
    dim: int,
    stride: int,
    pairs: int,
    by_lane: Any,
    queries: Any,
) -> None:
    """Queries in float32 or `pairs` of bfloat16: by_lane[lane, word] as they lie, queries[word, lane] as lanes."""
    count = dim // 2 if pairs else dim
    for lane in range(rows * group):
        start = (row + lane // group) * row_stride + (head * group + lane % group) * head_stride
        made, halves = (
            by_lane[lane * count : (lane + 1) * count],
            uint16_at(by_lane.ctypes.data + 4 * lane * count, dim),
        )
        if is_bfloat16:
            source = uint16_at(query + 2 * start, dim)
            for d in range(dim):
                halves[d] = source[d]
        elif pairs and dim % WIDTH == 0:
            to_bfloat16(query + 4 * start, dim // WIDTH, halves.ctypes.data)
        else:
            floats = float32_at(query + 4 * start, dim)
            if pairs:
                for d in range(dim):
                    halves[d] = np.uint16(bfloat16_bits(floats[d]))
            else:
                for d in range(dim):
                    made[d] = floats[d]
    lanes = -(rows * group // -WIDTH) * WIDTH
    transpose(by_lane.ctypes.data, count, lanes, count, queries.ctypes.data, stride)


@njit(error_model="numpy")
def _pack_values(values: int, count: int, dim: int, packed: Any) -> None:
    """Values of two neighbouring keys in a word: packed[key / 2, d]."""
    source, as_words = uint16_at(values, count * dim), int32_at(packed.ctypes.data, (count + 1) // 2 * dim)
    whole = dim // WIDTH
    for j in range(count // 2):
        even, target = values + 4 * j * dim, packed.ctypes.data + 4 * j * dim
        if whole:
            interleave(even, even + 2 * dim, target, whole)
        for d in range(whole * WIDTH, dim):
            word = np.int32(source[2 * j * dim + d]) | (np.int32(source[(2 * j + 1) * dim + d]) << np.int32(16))
            as_words[j * dim + d] = word
    if count % 2:
        for d in range(dim):
            as_words[count // 2 * dim + d] = np.int32(source[(count - 1) * dim + d])


@njit(error_model="numpy")
def _widen(halves: int, count: int, out: int) -> None:
    """`count` numbers of bfloat16 as float32; addresses."""
    whole = count // WIDTH * WIDTH
    if whole:
        from_bfloat16(halves, whole // WIDTH, out)
    source, target = uint16_at(halves, count), int32_at(out, count)
    for i in range(whole, count):
        target[i] = np.int32(source[i]) << np.int32(16)


@njit(error_model="numpy", fastmath=FASTMATH)
def _write(
    out: int,
    is_bfloat16: int,
    row: int,
    rows: int,
    row_stride: int,
    head: int,
    head_stride: int,
    group: int,
    dim: int,
    stride: int,
    has_blocks: int,
    scratch: Any,
) -> None:
    """The sums over their weights: of blocks' keys, which are by element, if there were any, and of rows' own, by lane.

    Queries are spent: `by_lane` is overwritten.
    """
    by_lane, best, total, tops, parts = scratch.by_lane, scratch.best, scratch.total, scratch.tops, scratch.parts
    lanes = -(rows * group // -WIDTH) * WIDTH
    if has_blocks:
        transpose(scratch.totals.ctypes.data, stride, dim, lanes, by_lane.ctypes.data, dim)
    for lane in range(rows * group):
        made, means = by_lane[lane * dim : (lane + 1) * dim], scratch.means[lane * dim : (lane + 1) * dim]
        pivot = max(best[lane], tops[lane])
        kept, added = exp((best[lane] - pivot) * np.float32(LN2)), exp((tops[lane] - pivot) * np.float32(LN2))
        share = np.float32(1) / (total[lane] * kept + parts[lane] * added)
        if has_blocks:
            for d in range(dim):
                made[d] = (made[d] * kept + means[d] * added) * share
        else:
            for d in range(dim):
                made[d] = means[d] * added * share
        start = (row + lane // group) * row_stride + (head * group + lane % group) * head_stride
        if is_bfloat16 and dim % WIDTH == 0:
            to_bfloat16(made.ctypes.data, dim // WIDTH, out + 2 * start)
        elif is_bfloat16:
            target = uint16_at(out + 2 * start, dim)
            for d in range(dim):
                target[d] = np.uint16(bfloat16_bits(made[d]))
        else:
            floats = float32_at(out + 4 * start, dim)
            for d in range(dim):
                floats[d] = made[d]


@njit(error_model="numpy", fastmath=FASTMATH)
def _own_segment(
    segment: Any,
    row: int,
    rows: int,
    group: int,
    positions: Any,
    window: int,
    keys: int,
    values: int,
    per_word: int,
    dim: int,
    factor: Any,
    softcap: Any,
    scratch: Any,
    next_keys: int,
    next_values: int,
    next_count: int,
) -> None:
    """`_segment` for few queries, row by row. What is read next, see `row_block`."""
    size, query_size = row_size(dim, 4 // per_word), 4 * (dim // per_word)
    # Addresses, because slices of arrays are counted by atomic instructions.
    by_lane, means = scratch.by_lane.ctypes.data, scratch.means.ctypes.data
    tops, parts = scratch.tops.ctypes.data, scratch.parts.ctypes.data
    query_scales, query_offsets = scratch.query_scales.ctypes.data, scratch.query_offsets.ctypes.data
    scales = scratch.key_scales.ctypes.data, scratch.terms.ctypes.data, scratch.inverses.ctypes.data
    units = (factor, softcap, scratch.scores.ctypes.data)
    for r in range(max(segment[0] - row, 0), min(segment[1] - row, rows)):
        position = positions[row + r] - segment[4]
        stop = min(position + 1, segment[3] - segment[2])
        start = max(position - window + 1, 0)
        for first in range(0, group, MAX_QUERIES):
            count, lane = min(MAX_QUERIES, group - first), r * group + first
            of_queries = (query_scales + 4 * lane, query_offsets + 4 * lane)
            state = (means + 4 * lane * dim, tops + 4 * lane, parts + 4 * lane)
            for key in range(start, stop, KEYS):
                at, here, query = key * size, min(KEYS, stop - key), by_lane + lane * query_size
                # What lies a block's length ahead, as many keys as are here: of this row, then of what follows it.
                near = max(min(here, stop - key - KEYS), 0)
                skipped = max(key + KEYS - stop, 0)
                far, later = at + KEYS * size, size * skipped
                others = max(min(here - near, next_count - skipped), 0)
                ahead = (keys + far, values + far, near, next_keys + later, next_values + later, others)
                row_block(
                    per_word, count, query, dim, keys + at, values + at, here, *units, of_queries, scales, *state, ahead
                )


@njit(error_model="numpy")
def _segment(
    segment: Any,
    row: int,
    rows: int,
    group: int,
    positions: Any,
    window: int,
    keys: int,
    values: int,
    per_word: int,
    dim: int,
    stride: int,
    factor: Any,
    softcap: Any,
    scratch: Any,
) -> None:
    """One segment's keys for those rows of the tile that read it."""
    lower, upper = scratch.lower, scratch.upper
    first_row, last_row = max(segment[0] - row, 0), min(segment[1] - row, rows)
    length, position = segment[3] - segment[2], segment[4]
    first_vector, last_vector = first_row * group // WIDTH, -(last_row * group // -WIDTH)
    for lane in range(first_vector * WIDTH, last_vector * WIDTH):
        r = lane // group
        lower[lane], upper[lane] = 0, 0
        if first_row <= r < last_row:
            upper[lane] = min(positions[row + r] - position + 1, length)
            lower[lane] = max(positions[row + r] - window + 1 - position, 0)
    start = length
    for r in range(first_row, last_row):
        start = min(start, lower[r * group])
    # Of the lanes that a block takes at once: keys that any reads, and those that all do.
    end = np.int64(0)
    for vector in range(first_vector, last_vector, MAX_VECTORS):
        least, most, inner_least, inner_most = length, np.int64(0), np.int64(0), length
        for i in range(vector * WIDTH, min(vector + MAX_VECTORS, last_vector) * WIDTH):
            if upper[i] > 0:
                inner_least, inner_most = max(inner_least, lower[i]), min(inner_most, upper[i])
                least, most = min(least, lower[i]), max(most, upper[i])
        bounds = scratch.bounds[4 * vector : 4 * vector + 4]
        bounds[0], bounds[1], bounds[2], bounds[3] = least, most, inner_least, inner_most
        end = max(end, most)
    size = row_size(dim, 4 // per_word)
    # Where no instruction multiplies bfloat16, a block of it becomes float32 before all queries meet it.
    widens = per_word == 2 and not NATIVE_BFLOAT16
    taken = 1 if widens else per_word
    for first_key in range(start, end, KEYS):
        is_packed = False
        k, v = keys + size * first_key, values + size * first_key
        for vector in range(first_vector, last_vector, MAX_VECTORS):
            vectors = min(last_vector - vector, MAX_VECTORS)
            lane, bounds = vector * WIDTH, scratch.bounds[4 * vector : 4 * vector + 4]
            least, most, inner_least, inner_most = bounds[0], bounds[1], bounds[2], bounds[3]
            last_key: Any = min(first_key + KEYS, most)
            if last_key <= max(first_key, least):
                continue
            count = last_key - first_key
            masked = first_key < inner_least or last_key > inner_most
            asks = not is_packed
            if not is_packed:
                here: Any = min(KEYS, end - first_key)
                if per_word == 4:
                    scales = scratch.key_scales.ctypes.data, scratch.terms.ctypes.data, scratch.inverses.ctypes.data
                    read_scales(k, v, here, dim, factor, scales)
                    pack_values(v, here, dim // BYTE_CHUNK, scratch.values.ctypes.data)
                elif widens:
                    k, v = scratch.keys.ctypes.data, scratch.values.ctypes.data
                    _widen(keys + size * first_key, here * dim, k)
                    _widen(values + size * first_key, here * dim, v)
                elif per_word == 2:
                    _pack_values(v, here, dim, scratch.values)
            is_packed = True
            limits = (masked, first_key, factor, softcap, scratch, asks and not widens)
            if vectors == 3:
                _block_3(taken, count, dim, lane, stride, k, v, *limits)
            elif vectors == 2:
                _block_2(taken, count, dim, lane, stride, k, v, *limits)
            else:
                _block_1(taken, count, dim, lane, stride, k, v, *limits)


@njit(error_model="numpy")
def _place(segment: Any, head: int, size: int, stores: Any) -> tuple[int, int]:
    """Where a head's keys and values of a segment begin; `stores` is two stores' keys, values and heads' strides."""
    cache_keys, cache_values, cache_head, own_keys, own_values, own_head = stores
    if segment[5]:
        at = head * own_head + segment[2] * size
        return own_keys + at, own_values + at
    at = head * cache_head + segment[2] * size
    return cache_keys + at, cache_values + at


def _attend(arguments: Any) -> None:
    a = _read(arguments)
    query, out = a.query, a.out
    stores = (a.cache_keys, a.cache_values, a.cache_head, a.own_keys, a.own_values, a.own_head)
    num_tiles, heads, kv_heads, dim = a.num_tiles, a.heads, a.kv_heads, a.dim
    row_stride, head_stride, out_row, out_head = a.query_row, a.query_head, a.out_row, a.out_head
    window, is_bfloat16, per_word, scale, softcap = a.window, a.query_is_bfloat16, a.per_word, a.scale, a.softcap
    positions = int64_at(a.positions, a.rows)
    segments, tiles = int64_at(a.segments, 6 * a.num_segments), int64_at(a.tiles, 2 * num_tiles)
    offsets = int64_at(a.tile_offsets, num_tiles + 1)
    order = int64_at(a.tile_segments, offsets[num_tiles])
    group = heads // kv_heads
    size = row_size(dim, 4 // per_word)
    # Scores are in powers of two; with a cap, first twice their share of it: tanh(x) = (1 - e^-2x) / (1 + e^-2x).
    factor = scale * np.float32(LOG2E)
    if softcap > np.float32(0):
        factor = np.float32(2) * scale / softcap
    most = np.int64(0)
    for tile in range(num_tiles):
        most = np.maximum(most, tiles[2 * tile + 1] - tiles[2 * tile])
    stride = -(most * group // -WIDTH) * WIDTH
    scratch = scratch_for(stride, dim)
    best, total = scratch.best, scratch.total
    while True:
        unit = next_of(a.units_taken)
        if unit >= num_tiles * kv_heads:
            break
        tile, head = unit // kv_heads, unit % kv_heads
        row, rows = tiles[2 * tile], tiles[2 * tile + 1] - tiles[2 * tile]
        if per_word == 4:
            quantize_queries(query, row, rows, row_stride, head, head_stride, group, dim, stride, scratch)
        else:
            parts = per_word == 2 and not NATIVE_BFLOAT16
            lanes_of = (
                group,
                dim,
                stride,
                per_word == 2,
                scratch.by_lane,
                scratch.totals if parts else scratch.queries,
            )
            _pack_queries(query, is_bfloat16, row, rows, row_stride, head, head_stride, *lanes_of)
            if parts:
                part_pairs(scratch.totals.ctypes.data, dim // 2, stride // WIDTH, 0, scratch.queries.ctypes.data)
        has_blocks = False
        scratch.means[: rows * group * dim] = np.float32(0)
        for lane in range(stride):
            best[lane], total[lane] = np.float32(LEAST), np.float32(0)
            scratch.tops[lane], scratch.parts[lane] = np.float32(LEAST), np.float32(0)
        if a.sinks:
            sinks = float32_at(a.sinks, heads)
            for lane in range(rows * group):
                best[lane], total[lane] = sinks[head * group + lane % group] * np.float32(LOG2E), np.float32(1)
        for at in range(offsets[tile], offsets[tile + 1]):
            segment = segments[6 * order[at] : 6 * order[at] + 6]
            k, v = _place(segment, head, size, stores)
            shape = (factor, softcap, scratch)
            readers = min(segment[1] - row, rows) - max(segment[0] - row, 0)
            if readers * group <= MAX_QUERIES and dim % CHUNK == 0:
                after = (k, v, np.int64(0))
                if at + 1 < offsets[tile + 1] and window == NO_WINDOW:
                    other = segments[6 * order[at + 1] : 6 * order[at + 1] + 6]
                    next_k, next_v = _place(other, head, size, stores)
                    after = (next_k, next_v, other[3] - other[2])
                _own_segment(segment, row, rows, group, positions, window, k, v, per_word, dim, *shape, *after)
            else:
                if not has_blocks:
                    scratch.totals[:] = np.float32(0)
                    has_blocks = True
                _segment(segment, row, rows, group, positions, window, k, v, per_word, dim, stride, *shape)
        _write(out, a.out_is_bfloat16, row, rows, out_row, head, out_head, group, dim, stride, has_blocks, scratch)


LOOP = Loop(_attend, AttentionArguments)


def replan(recording: Recording, plan: AttentionPlan) -> None:
    """Makes attention that was recorded go by another plan, of as many rows."""
    recording.change(LOOP, **_of_plan(plan))


def _of_plan(plan: AttentionPlan) -> dict[str, Any]:
    """The fields of a call that say what is read and in which tiles."""
    return {
        "positions": plan.positions,
        "segments": plan.segments.table,
        "tiles": plan.tiles,
        "tile_offsets": plan.tile_offsets,
        "tile_segments": plan.tile_segments,
        "num_tiles": len(plan.tiles),
        "num_segments": len(plan.segments),
    }
