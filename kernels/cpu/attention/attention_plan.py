"""A step's attention on the CPU, as plain arrays: planned once a step, run once a layer."""

from dataclasses import dataclass

import numpy as np

from kernels.segments import Ints, Segments

# Rows of a tile. More rows read a shared key less often; fewer spread a small step over the cores.
MIN_ROWS, MAX_ROWS = 16, 64
# What a key costs beside the rows that read it, in rows: one that is read alone takes as long as one of five.
KEY_COST = 4


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPlan:
    """What a step's rows read and in which tiles, made once for all layers.

    `positions` (rows,). `tiles` (tiles, 2) are rows from and to, those first that take longest: units of work are taken
    in this order, and cores so end together (Graham, SIAM J. Appl. Math. 17(2), 1969). Tile t reads the segments
    `tile_segments[tile_offsets[t] : tile_offsets[t + 1]]`.
    """

    positions: Ints
    segments: Segments
    tiles: Ints
    tile_offsets: Ints
    tile_segments: Ints


def plan_attention(
    positions: Ints, segments: Segments, num_kv_heads: int, threads: int, *, in_order: bool = False
) -> AttentionPlan:
    """`in_order`: a tile reads its segments by position, so that each row meets its keys one behind the other."""
    bounds = _bounds(len(positions), segments, num_kv_heads, threads)
    first = np.searchsorted(bounds, segments.row_start, side="right") - 1
    last = np.searchsorted(bounds, segments.row_end, side="left")
    spread = last - first
    segment = np.repeat(np.arange(len(segments)), spread)
    tile = np.repeat(first, spread) + np.arange(len(segment)) - np.repeat(np.cumsum(spread) - spread, spread)
    order = np.argsort(-_costs(positions, segments, bounds, tile, segment), kind="stable")
    place = np.argsort(order)[tile]
    by_tile = np.lexsort((segments.position[segment], place)) if in_order else np.argsort(place, kind="stable")
    offsets = np.searchsorted(place[by_tile], np.arange(len(bounds)))
    tiles = np.stack((bounds[:-1], bounds[1:]), axis=1)[order]
    return AttentionPlan(positions, segments, tiles, offsets, segment[by_tile])


def _costs(positions: Ints, segments: Segments, bounds: Ints, tile: Ints, segment: Ints) -> Ints:
    """Of each tile, by the pairs of a tile and a segment that it reads; in keys of a row."""
    row_end = np.minimum(segments.row_end[segment], bounds[tile + 1])
    readers = row_end - np.maximum(segments.row_start[segment], bounds[tile])
    kv_start, kv_end, position = segments.table[segment, 2:5].T
    keys = np.clip(positions[row_end - 1] + 1 - position, 0, kv_end - kv_start)
    return np.bincount(tile, keys * (readers + KEY_COST), len(bounds) - 1).astype(np.int64)


def _bounds(count: int, segments: Segments, num_kv_heads: int, threads: int) -> Ints:
    """Rows at which tiles begin, and the end: where segments do, so that few tiles hold a part of one alone."""
    wanted = min(max(count * num_kv_heads // (8 * threads), MIN_ROWS), MAX_ROWS)
    shared = segments.row_end - segments.row_start >= MIN_ROWS // 4
    bounds = np.unique(segments.table[shared, :2])
    starts = [0]
    while starts[-1] + wanted < count:
        start = starts[-1]
        near = bounds[
            np.searchsorted(bounds, start + wanted // 2) : np.searchsorted(bounds, start + 2 * wanted, "right")
        ]
        near = near[near <= start + MAX_ROWS]
        starts.append(int(near[np.abs(near - start - wanted).argmin()]) if len(near) else start + wanted)
    return np.array([*starts, count] if starts[-1] < count else starts, dtype=np.int64)
