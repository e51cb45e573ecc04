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

from kernels.cpu.attention.attended import write_attended
from kernels.cpu.attention.attention_plan import AttentionPlan
from kernels.cpu.attention.attention_scratch import MAX_QUERIES, addresses_of, scratch_for
from kernels.cpu.attention.attention_work import LOG2E, PER_WORD, Keys, Tile, Work, segment_at, whole_vectors
from kernels.cpu.attention.byte_kv import row_size
from kernels.cpu.attention.own_segment import make_own_segment
from kernels.cpu.attention.queries import make_queries
from kernels.cpu.attention.row_products import CHUNK
from kernels.cpu.attention.shared_segment import make_shared_segment
from kernels.cpu.attention.softmax import LEAST
from kernels.cpu.language.arguments import AT_ZERO, Counter, reader
from kernels.cpu.language.jit import FASTMATH, njit
from kernels.cpu.language.openmp import Loop, Recording, float32_at, int64_at, next_of
from kernels.cpu.language.vectors import WIDTH
from kernels.kv_format import BFLOAT16, FLOAT32, INT8_ROWS, kv_format_of
from kernels.processor import takes_bytes
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
    if kv_format_of(cache[0].dtype) == INT8_ROWS:
        assert not softcap, softcap
    scoring = {"scale": scale, "window": window, "softcap": softcap, "sinks": sinks}
    LOOP(**attention_fields(plan, query, cache, own, out, scoring))
    return out


def attention_fields(
    plan: AttentionPlan,
    query: Tensor,
    cache: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    out: Tensor,
    scoring: dict[str, Any],
) -> dict[str, Any]:
    """`AttentionArguments` of a call; `scoring` are the scale, window, softcap and sinks that it was given."""
    rows, heads, dim = query.shape
    keys = cache[0]
    kv_heads, kept = keys.shape[0], kv_format_of(keys.dtype)
    assert query.dtype in (torch.float32, torch.bfloat16), query.dtype
    assert query.stride(2) == out.stride(2) == 1
    assert out.dtype in (torch.float32, torch.bfloat16), out.dtype
    if kept == INT8_ROWS:
        assert takes_bytes(dim), dim
        assert query.dtype == torch.float32, query.dtype
    for tensor in (*cache, *own):
        assert tensor.dtype == keys.dtype
        assert tensor.stride()[1:] == (kept.row_width(dim), 1), tensor.stride()
    return {
        "query": query,
        "out": out,
        "cache_keys": keys,
        "cache_values": cache[1],
        "own_keys": own[0],
        "own_values": own[1],
        "sinks": scoring["sinks"],
        "rows": rows,
        "heads": heads,
        "kv_heads": kv_heads,
        "dim": dim,
        "query_row": query.stride(0),
        "query_head": query.stride(1),
        "out_row": out.stride(0),
        "out_head": out.stride(1),
        "cache_head": kept.itemsize * keys.stride(0),
        "own_head": kept.itemsize * own[0].stride(0),
        "window": NO_WINDOW if scoring["window"] is None else scoring["window"],
        "per_word": 4 // kept.itemsize,
        "scale": float(scoring["scale"]),
        "softcap": float(scoring["softcap"]),
        "query_is_bfloat16": query.dtype == torch.bfloat16,
        "out_is_bfloat16": out.dtype == torch.bfloat16,
        **fields_of_plan(plan),
    }


def _make_attention(kind: str) -> Any:
    """For numba: `f(a)`: the step's attention over keys and values of a kind, by the fields of a call."""
    pack, attend_tile = make_queries(kind), _make_tile(kind)

    @njit(error_model="numpy", inline="always")
    def attention(a: Any) -> None:
        tiles = int64_at(a.tiles, 2 * a.num_tiles)
        most = np.int64(0)
        for tile in range(a.num_tiles):
            most = np.maximum(most, tiles[2 * tile + 1] - tiles[2 * tile])
        work = work_of(a, most)
        scratch = scratch_for(work.lanes, work.dim)
        while True:
            unit = next_of(a.units_taken)
            if unit >= a.num_tiles * a.kv_heads:
                break
            index = unit // a.kv_heads
            tile_rows = tiles[2 * index + 1] - tiles[2 * index]
            of = Tile(tiles[2 * index], tile_rows, unit % a.kv_heads)
            pack(a, of, work, scratch)
            _begin(a, of, work, scratch)
            has_blocks = attend_tile(a, index, of, work, scratch)
            write_attended(a, of, work, has_blocks, scratch)

    return attention


@njit(error_model="numpy", fastmath=FASTMATH)
def work_of(a: Any, rows: int) -> Any:
    """What all tiles have in common, of which the largest has so many rows."""
    group = a.heads // a.kv_heads
    # Scores are in powers of two; with a cap, first twice their share of it: tanh(x) = (1 - e^-2x) / (1 + e^-2x).
    factor = a.scale * np.float32(LOG2E)
    if a.softcap > np.float32(0):
        factor = np.float32(2) * a.scale / a.softcap
    return Work(a.dim, group, whole_vectors(rows * group, WIDTH), a.window, factor, a.softcap)


@njit(error_model="numpy", fastmath=FASTMATH)
def _begin(a: Any, tile: Any, work: Any, scratch: Any) -> None:
    """A tile has attended nothing yet, or its heads' sinks."""
    best, total, lanes = scratch.best, scratch.total, tile.rows * work.group
    scratch.means[: lanes * work.dim] = np.float32(0)
    for lane in range(work.lanes):
        best[lane], total[lane] = np.float32(LEAST), np.float32(0)
        scratch.tops[lane], scratch.parts[lane] = np.float32(LEAST), np.float32(0)
    if a.sinks:
        sinks = float32_at(a.sinks, a.heads)
        for lane in range(lanes):
            sink = sinks[tile.head * work.group + lane % work.group]
            best[lane], total[lane] = sink * np.float32(LOG2E), np.float32(1)


def _make_tile(kind: str) -> Any:
    """For numba: `f(a, index, tile, work, scratch)`: attends to all segments of a tile; whether queries were lanes."""
    shared_segment, own_segment = make_shared_segment(kind), make_own_segment(kind)
    itemsize = 4 // PER_WORD[kind]

    @njit(error_model="numpy", inline="always")
    def attend_tile(a: Any, index: int, tile: Any, work: Any, scratch: Any) -> bool:
        size, has_blocks, addresses = row_size(work.dim, itemsize), False, addresses_of(scratch)
        positions, offsets = int64_at(a.positions, a.rows), int64_at(a.tile_offsets, a.num_tiles + 1)
        order = int64_at(a.tile_segments, offsets[a.num_tiles])
        for at in range(offsets[index], offsets[index + 1]):
            segment = segment_at(a.segments, order[at])
            place = keys_at(a, segment, tile.head, size)
            readers = min(segment.row_end - tile.row, tile.rows) - max(segment.row_start - tile.row, 0)
            if readers * work.group <= MAX_QUERIES and work.dim % CHUNK == 0:
                length: Any = np.int64(0)
                after = Keys(place[0], place[1], length)
                if at + 1 < offsets[index + 1] and work.window == NO_WINDOW:
                    other = segment_at(a.segments, order[at + 1])
                    next_place = keys_at(a, other, tile.head, size)
                    after = Keys(next_place[0], next_place[1], other.kv_end - other.kv_start)
                own_segment(segment, place, after, tile, work, positions, addresses)
            else:
                if not has_blocks:
                    scratch.totals[:] = np.float32(0)
                    has_blocks = True
                shared_segment(segment, place, tile, work, positions, addresses)
        return has_blocks

    return attend_tile


@njit(error_model="numpy")
def keys_at(a: Any, segment: Any, head: int, size: int) -> tuple[int, int]:
    """Where a head's keys and values of a segment begin, in rows of `size` bytes."""
    if segment.in_step:
        at = head * a.own_head + segment.kv_start * size
        return a.own_keys + at, a.own_values + at
    at = head * a.cache_head + segment.kv_start * size
    return a.cache_keys + at, a.cache_values + at


_over_float32, _over_pairs, _over_bytes = (_make_attention(kind) for kind in ("float32", "pairs", "bytes"))


def _attend(arguments: Any) -> None:
    a = _read(arguments)
    if a.per_word == 4:
        _over_bytes(a)
    elif a.per_word == 2:
        _over_pairs(a)
    else:
        _over_float32(a)


LOOP = Loop(_attend, AttentionArguments)


def replan(recording: Recording, plan: AttentionPlan) -> None:
    """Makes attention that was recorded go by another plan, of as many rows."""
    recording.change(LOOP, **fields_of_plan(plan))


def fields_of_plan(plan: AttentionPlan) -> dict[str, Any]:
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
