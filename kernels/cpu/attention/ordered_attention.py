"""Attention whose sums follow the keys' positions alone: what a row attends is the same to the last bit in any step.

`kernels.cpu.attention.cpu_attention` goes from segment to segment and rescales what it has summed, so that a row's last
bits follow from where segments end, and from whether other rows read them too. Here all scores of a row are made
before its first weight: the greatest of them is the same in any order, weights are over it, and their sums are one
chain over the keys, by position. So neither segments nor steps nor tiles are seen in the sums, and a shared key is
still read once for all rows of a tile (He et al., Defeating Nondeterminism in LLM Inference, Thinking Machines, 2025,
fix the cuts of the keys instead, as vLLM's batch-invariant mode does, which shares no prefix).

Keys and values in fewer bits become float32 first; products and sums are in float32 throughout.
"""

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from kernels.cpu.attention.attended import put
from kernels.cpu.attention.attention_plan import AttentionPlan
from kernels.cpu.attention.attention_scratch import KEYS, MAX_VECTORS
from kernels.cpu.attention.attention_work import LN2, LOG2E, Tile, place_of, whole_vectors
from kernels.cpu.attention.byte_kv import row_size
from kernels.cpu.attention.cpu_attention import AttentionArguments, attention_fields, fields_of_plan, work_of
from kernels.cpu.attention.ordered_blocks import make_scores, make_sums
from kernels.cpu.attention.ordered_pieces import PIECE, limit, piece_at, pieces_of
from kernels.cpu.attention.queries import in_float32, in_parted_pairs
from kernels.cpu.attention.softmax import LOWEST
from kernels.cpu.language.arguments import reader
from kernels.cpu.language.jit import FASTMATH, njit
from kernels.cpu.language.openmp import Loop, Recording, exp, float32_at, int64_at, lines_of, next_of
from kernels.cpu.language.transpose import transpose
from kernels.cpu.language.vectors import WIDTH

_read = reader(AttentionArguments)


def ordered_attention(
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
    """As `cpu_attention`, of a plan whose tiles read their segments by position (`in_order`)."""
    scoring = {"scale": scale, "window": window, "softcap": softcap, "sinks": sinks}
    LOOP(**attention_fields(plan, query, cache, own, out, scoring))
    return out


class Scratch(NamedTuple):
    """Flat, of float32 where nothing else is said; a lane is a query of the tile."""

    by_lane: Any  # (lanes, dim): queries as they came, in the end what they attended
    queries: Any  # (dim, lanes)
    totals: Any  # (dim, lanes): sums of weights times values
    best: Any  # (lanes,): the greatest score, then the power of two that it is
    total: Any  # (lanes,): sums of weights
    lower: Any  # (lanes,) int32: the keys of a piece that each lane reads, from here
    upper: Any  # (lanes,) int32: to here; 0 for none
    wide: Any  # (KEYS, dim): keys or values that lie in fewer bits
    kept: Any  # (dim, 2 vectors): sums of lanes beside those that read a piece
    edge: Any  # 2 (3 vectors): the greatest scores of a block; ones


@njit(error_model="numpy")
def _scratch_for(lanes: int, dim: int) -> Any:
    edge = lines_of(2 * MAX_VECTORS * WIDTH)
    edge[MAX_VECTORS * WIDTH :] = np.float32(1)
    by_lane, queries = lines_of(lanes * dim), lines_of(lanes * dim)
    by_lane[:], queries[:] = np.float32(0), np.float32(0)
    return Scratch(
        by_lane,
        queries,
        lines_of(lanes * dim),
        lines_of(lanes),
        lines_of(lanes),
        np.empty(lanes, np.int32),
        np.empty(lanes, np.int32),
        lines_of(KEYS * dim),
        lines_of(2 * WIDTH * dim),
        edge,
    )


def _make_lanes(kind: str) -> Any:
    """For numba: `f(a, pieces, count, tile, work, scratch, room)`: some lanes of a tile over their pieces."""
    scores_1, scores_2, scores_3 = (make_scores(vectors, kind) for vectors in (1, 2, 3))
    sums_1, sums_2, sums_3 = (make_sums(vectors, kind) for vectors in (1, 2, 3))

    @njit(error_model="numpy")
    def attend_lanes(a: Any, pieces: Any, count: int, tile: Any, work: Any, scratch: Any, room: int) -> None:
        for at in range(count):
            piece = piece_at(pieces, at)
            inner, here = limit(a, piece, tile, work, scratch), room + 4 * piece.scores
            vectors = (whole_vectors(piece.high, WIDTH) - piece.low // WIDTH * WIDTH) // WIDTH
            if vectors == 3:
                scores_3(piece, inner, work, scratch, here)
            elif vectors == 2:
                scores_2(piece, inner, work, scratch, here)
            else:
                scores_1(piece, inner, work, scratch, here)
        factor = np.float32(LOG2E) if work.softcap > np.float32(0) else work.factor
        _find_pivots(a, tile, work, factor, pieces, count, scratch)
        for at in range(count):
            piece = piece_at(pieces, at)
            here = room + 4 * piece.scores
            vectors = (whole_vectors(piece.high, WIDTH) - piece.low // WIDTH * WIDTH) // WIDTH
            if vectors == 3:
                sums_3(piece, factor, work, scratch, here)
            elif vectors == 2:
                sums_2(piece, factor, work, scratch, here)
            else:
                sums_1(piece, factor, work, scratch, here)

    return attend_lanes


def _make_attention(kind: str) -> Any:
    """For numba: `f(a)`: the step's attention over keys and values of a kind, by the fields of a call."""
    pack, attend_lanes = in_parted_pairs if kind == "pairs" else in_float32, _make_lanes(kind)
    itemsize = {"float32": 4, "pairs": 2, "bytes": 1}[kind]

    @njit(error_model="numpy", inline="always")
    def attention(a: Any) -> None:
        tiles, offsets = int64_at(a.tiles, 2 * a.num_tiles), int64_at(a.tile_offsets, a.num_tiles + 1)
        rows, segments = np.int64(0), np.int64(0)
        for tile in range(a.num_tiles):
            rows = np.maximum(rows, tiles[2 * tile + 1] - tiles[2 * tile])
            segments = np.maximum(segments, offsets[tile + 1] - offsets[tile])
        work, size = work_of(a, rows), row_size(a.dim, itemsize)
        scratch, pieces, room = _scratch_for(work.lanes, work.dim), np.empty(PIECE * segments, np.int64), lines_of(0)
        while True:
            unit = next_of(a.units_taken)
            if unit >= a.num_tiles * a.kv_heads:
                break
            index = unit // a.kv_heads
            tile_rows = tiles[2 * index + 1] - tiles[2 * index]
            of = Tile(tiles[2 * index], tile_rows, unit % a.kv_heads)
            pack(a, of, work, scratch)
            scratch.totals[:], scratch.total[:] = np.float32(0), np.float32(0)
            scratch.best[:] = np.float32(LOWEST)
            lanes = whole_vectors(tile_rows * work.group, WIDTH)
            for first in range(0, lanes, MAX_VECTORS * WIDTH):
                taken = (first, min(first + MAX_VECTORS * WIDTH, lanes))
                count, words = pieces_of(a, index, of, work, taken, size, pieces)
                if words > len(room):
                    room = lines_of(words)
                attend_lanes(a, pieces, count, of, work, scratch, room.ctypes.data)
            _write(a, of, work, scratch)

    return attention


@njit(error_model="numpy")
def _find_pivots(a: Any, tile: Any, work: Any, factor: Any, pieces: Any, count: int, scratch: Any) -> None:
    """The greatest scores become powers of two, of lanes that the pieces read, and heads' sinks are weighed."""
    low, high = work.lanes, np.int64(0)
    for at in range(count):
        piece = piece_at(pieces, at)
        low, high = min(low, piece.low), max(high, piece.high)
    for lane in range(low, high):
        scratch.best[lane] *= factor
    if a.sinks:
        sinks = float32_at(a.sinks, a.heads)
        for lane in range(low, high):
            sink = sinks[tile.head * work.group + lane % work.group] * np.float32(LOG2E)
            pivot = scratch.best[lane] if sink <= scratch.best[lane] else sink
            scratch.total[lane], scratch.best[lane] = exp((sink - pivot) * np.float32(LN2)), pivot


@njit(error_model="numpy", fastmath=FASTMATH)
def _write(a: Any, tile: Any, work: Any, scratch: Any) -> None:
    """The sums over the sums of weights, to where the rows' queries were asked."""
    dim, by_lane = work.dim, scratch.by_lane
    lanes = whole_vectors(tile.rows * work.group, WIDTH)
    transpose(scratch.totals.ctypes.data, work.lanes, dim, lanes, by_lane.ctypes.data, dim)
    for lane in range(tile.rows * work.group):
        made, share = by_lane[lane * dim : (lane + 1) * dim], np.float32(1) / scratch.total[lane]
        for d in range(dim):
            made[d] *= share
        put(made, dim, a.out, place_of(tile, work.group, lane, a.out_row, a.out_head), a.out_is_bfloat16)


_over_float32, _over_pairs, _over_bytes = (_make_attention(kind) for kind in ("float32", "pairs", "bytes"))


def _attend(arguments: Any) -> None:
    a = _read(arguments)
    if a.per_word == 4:
        _over_bytes(a)
    elif a.per_word == 2:
        _over_pairs(a)
    else:
        _over_float32(a)


LOOP = Loop(_attend, AttentionArguments, in_order=True)


def replan_ordered(recording: Recording, plan: AttentionPlan) -> None:
    """Makes attention that was recorded go by another plan, of as many rows."""
    recording.change(LOOP, **fields_of_plan(plan))
