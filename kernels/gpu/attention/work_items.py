"""Cuts a step's attention into work items of even size: which rows, which keys, and where the result goes.

An item is one tile of query rows (stacked with the query heads that share a KV head) over a list of key pieces. The
items are all there is to launch: a long prefix under few rows is cut along its keys until every processor has work, a
thousand short ones stay whole, and the longest items come first, so that the device's own dispatch evens out the rest.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from kernels.gpu.attention.paged_segments import PagedSegments, paged, ranges
from kernels.segments import Int32s, Ints, Segments, reach

# What an item costs beside its blocks of keys, in blocks: its start, its queries, its result.
ITEM_OVERHEAD = 1.0
# Of the items in small tiles that have begun when the last one in a large tile does.
LARGE_SHARE = 0.7
# A block's cost differs little between tiles: both read the same keys, and reading is what takes the time in decode.
CHUNKS = np.array([2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2**30])


class ItemField(IntEnum):
    """Columns of an item, as the kernel reads them; `PARTIAL` is its first partial row, -1 where it writes results."""

    ROW_START = 0
    ROWS = 1
    PIECE_START = 2
    PIECE_END = 3
    PARTIAL = 4
    IS_LARGE = 5


class PieceField(IntEnum):
    """Columns of a piece, as the kernel reads them: its first entry in the table, where its keys start, where whole
    blocks that need no mask end, where the keys end, the position of key 0, and 1 where they are the step's own.
    """

    ENTRY = 0
    START = 1
    WHOLE_END = 2
    END = 3
    POSITION = 4
    IN_STEP = 5


@dataclass(frozen=True, slots=True)
class TileShape:
    """`small` and `large` query rows x heads a tile, `keys` a block; `heads` (of a KV head's group) are stacked."""

    small: int
    large: int
    keys: int
    heads: int

    @property
    def small_rows(self) -> int:
        return self.small // self.heads

    @property
    def large_rows(self) -> int:
        return self.large // self.heads


@dataclass(frozen=True, slots=True, eq=False)
class WorkItems:
    """`items` by `ItemField`, `pieces` by `PieceField`, `table` and `positions` (rows,): what to launch.

    Rows `merge_rows` (merged,) are merged from the partial rows
    `merge_partials[merge_starts[i]:merge_starts[i + 1]]`, of which there are `num_partials` in all. A row that reads
    nothing is merged from none.
    """

    items: Int32s
    pieces: Int32s
    table: Int32s
    positions: Int32s
    merge_rows: Int32s
    merge_starts: Int32s
    merge_partials: Int32s
    num_partials: int
    costs: Ints  # (items,) blocks of keys, in the items' order

    @property
    def num_rows(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, slots=True, eq=False)
class _Tiles:
    """`(tiles,)` row ranges, and pieces in order of their tile."""

    row_start: Ints
    row_end: Ints
    large: Ints
    piece_tile: Ints
    pieces: Ints  # (pieces, fields of `PieceField`)


def work_items(
    segments: Segments,
    row_positions: Ints,
    page: int,
    tile: TileShape,
    *,
    window: int | None = None,
    processors: int,
    head_slices: int,
    ahead: int = 0,
) -> WorkItems:
    """`processors` programs run at once; every item runs once for each of `head_slices` (KV heads, at least).

    They hold as well when all rows stand up to `ahead` positions further on, with their keys in the segments.
    """
    assert tile.small_rows >= 1, tile
    assert int(row_positions.max(initial=0)) < 2**30, "positions are 32 bits on the device"
    paging = paged(segments, len(row_positions), page)
    tiles = _tiles(paging, row_positions, tile, reach(window), ahead)
    return _items(tiles, paging, row_positions, tile, processors, head_slices)


def _regions(paging: PagedSegments, num_rows: int, tile: TileShape) -> Ints:
    """Boundaries of row ranges: runs of rows that read the same segments and fill a large tile, and what lies between.

    Within such a run a tile takes all its segments in one pass and needs no merge; elsewhere segments are taken one by
    one over all their rows, so that each key is read once.
    """
    bounds = np.unique(np.concatenate((paging.row_start, paging.row_end, [0, num_rows])))
    large = np.diff(bounds) >= tile.large_rows
    touches = np.concatenate(([True], large)) | np.concatenate((large, [True]))
    return np.asarray(bounds[touches])


def _tiles(paging: PagedSegments, positions: Ints, tile: TileShape, window: int, ahead: int) -> _Tiles:
    bounds = _regions(paging, len(positions), tile)
    low = np.searchsorted(bounds, paging.row_start, "right") - 1
    counts = np.searchsorted(bounds, paging.row_end, "left") - low
    segment = np.repeat(np.arange(len(low)), counts)
    region = low[segment] + ranges(counts)
    row_start = np.maximum(paging.row_start[segment], bounds[region])
    row_end = np.minimum(paging.row_end[segment], bounds[region + 1])
    groups, group = np.unique(np.stack((row_start, row_end), 1), axis=0, return_inverse=True)
    group = group.reshape(-1)
    # Tiles of each group, then the group's segments for each tile.
    rows = groups[:, 1] - groups[:, 0]
    per_tile = np.where(rows <= tile.small_rows, tile.small_rows, tile.large_rows)
    num_tiles = -(-rows // per_tile)
    tile_group = np.repeat(np.arange(len(groups)), num_tiles)
    tile_start = groups[tile_group, 0] + ranges(num_tiles) * per_tile[tile_group]
    tile_end = np.minimum(tile_start + per_tile[tile_group], groups[tile_group, 1])
    members = np.argsort(group, kind="stable")
    num_members = np.bincount(group, minlength=len(groups))
    first_member = np.cumsum(num_members) - num_members
    repeats = num_members[tile_group]
    piece_tile = np.repeat(np.arange(len(tile_group)), repeats)
    piece_segment = segment[members[first_member[tile_group][piece_tile] + ranges(repeats)]]
    nearest, farthest = _span(positions, tile_start, tile_end)
    large = tile_end - tile_start > tile.small_rows
    spans = nearest[piece_tile], farthest[piece_tile] + ahead
    which, pieces = _pieces(paging, piece_segment, *spans, large[piece_tile], tile.keys, window)
    return _Tiles(tile_start, tile_end, large.astype(np.int64), piece_tile[which], pieces)


def _span(positions: Ints, start: Ints, end: Ints) -> tuple[Ints, Ints]:
    """The lowest and the highest position within each of the row ranges."""
    if not len(start):
        return start, end
    padded = np.append(positions, positions[-1:])
    edges = np.stack((start, end), 1).reshape(-1)
    return np.minimum.reduceat(padded, edges)[::2], np.maximum.reduceat(padded, edges)[::2]


def _pieces(
    paging: PagedSegments,
    segment: Ints,
    nearest: Ints,
    farthest: Ints,
    large: NDArray[np.bool_],
    block: int,
    window: int,
) -> tuple[Ints, Ints]:
    """For every (tile, segment): the keys that any of its rows reads, unmasked blocks and then masked ones.

    Rows of the tile stand at `nearest` to `farthest`. Blocks that all of them read whole need no mask at all; they are
    most of a prefix. What a window masks before them is a piece of its own. Small tiles wait for memory, not for
    masks, and have all of theirs masked. Returns which pair each piece is from, and the pieces.
    """
    position = paging.position[segment]
    start = np.maximum(paging.start[segment], nearest - window + 1 - position)
    end = np.minimum(paging.end[segment], farthest + 1 - position)
    late = np.maximum(farthest - window + 1 - position - start, 0)
    whole_start = start + -(-late // block) * block
    whole_end = np.minimum(end, nearest + 1 - position)
    whole_end = whole_start + np.maximum(whole_end - whole_start, 0) // block * block
    none = (whole_end == whole_start) | ~large
    whole_start, whole_end = np.where(none, start, whole_start), np.where(none, start, whole_end)
    columns = (
        paging.first[segment][:, None],
        np.stack((start, whole_start), 1),
        np.stack((start, whole_end), 1),
        np.stack((whole_start, end), 1),
        position[:, None],
        paging.in_step[segment][:, None],
    )
    pieces = np.stack(np.broadcast_arrays(*columns), 2).reshape(-1, len(PieceField)).astype(np.int64)
    keep = np.flatnonzero(pieces[:, PieceField.START] < pieces[:, PieceField.END])
    return keep // 2, pieces[keep]


def _items(
    tiles: _Tiles, paging: PagedSegments, positions: Ints, tile: TileShape, processors: int, head_slices: int
) -> WorkItems:
    num_rows, num_tiles = len(positions), len(tiles.row_start)
    sizes = -(-(tiles.pieces[:, PieceField.END] - tiles.pieces[:, PieceField.START]) // tile.keys)
    blocks = np.bincount(tiles.piece_tile, weights=sizes, minlength=num_tiles).astype(np.int64)
    rows = tiles.row_end - tiles.row_start
    splits = _splits(blocks, rows * tile.heads, tile.keys, processors / head_slices)
    per_item = -(-blocks // np.maximum(splits, 1))
    splits = -(-blocks // np.maximum(per_item, 1))
    parent, local, pieces = _cut(tiles, sizes, blocks, per_item, tile.keys)
    starts, ends = pieces[:, PieceField.START], pieces[:, PieceField.END]
    item_tile = np.repeat(np.arange(num_tiles), splits)
    item_of_piece = (np.cumsum(splits) - splits)[tiles.piece_tile[parent]] + local
    num_pieces = np.bincount(item_of_piece, minlength=len(item_tile))
    piece_end = np.cumsum(num_pieces)
    # A tile whose rows no other tile or split touches writes the result itself.
    cover = np.zeros(num_rows + 1, dtype=np.int64)
    np.add.at(cover, tiles.row_start, splits)
    np.add.at(cover, tiles.row_end, -splits)
    cover = np.cumsum(cover)[:num_rows]
    _, most = _span(cover, tiles.row_start, tiles.row_end)
    direct = (most == 1)[item_tile]
    kept = np.where(direct, 0, rows[item_tile])
    partial = np.where(direct, -1, np.cumsum(kept) - kept)
    merge = _merges(tiles.row_start[item_tile], partial, kept, cover)
    costs = np.bincount(item_of_piece, weights=-(-(ends - starts) // tile.keys), minlength=len(item_tile))
    costs = costs.astype(np.int64)
    columns = (tiles.row_start[item_tile], rows[item_tile], piece_end - num_pieces, piece_end, partial)
    items = np.stack((*columns, tiles.large[item_tile]), 1)
    order = _order(costs, tiles.large[item_tile])
    return WorkItems(
        items=items[order].astype(np.int32),
        pieces=pieces.astype(np.int32),
        table=paging.table,
        positions=positions.astype(np.int32),
        merge_rows=merge[0],
        merge_starts=merge[1],
        merge_partials=merge[2],
        num_partials=int(kept.sum()),
        costs=costs[order],
    )


def _cut(tiles: _Tiles, sizes: Ints, blocks: Ints, per_item: Ints, keys: int) -> tuple[Ints, Ints, Ints]:
    """Every piece cut where its tile's items begin: which piece a part is from, which of its tile's items, the part.

    Pieces are of `sizes` blocks of `keys`; tiles have `blocks` in all and `per_item` in an item.
    """
    tile_first = np.cumsum(blocks) - blocks
    piece_first = np.cumsum(sizes) - sizes - tile_first[tiles.piece_tile]
    size = per_item[tiles.piece_tile]
    low = piece_first // np.maximum(size, 1)
    counts = (piece_first + sizes - 1) // np.maximum(size, 1) - low + 1
    parent = np.repeat(np.arange(len(sizes)), counts)
    local = low[parent] + ranges(counts)
    cut_start = np.maximum(local * size[parent] - piece_first[parent], 0)
    cut_end = np.minimum((local + 1) * size[parent] - piece_first[parent], sizes[parent])
    parts = tiles.pieces[parent]
    origin = parts[:, PieceField.START].copy()
    start = origin + cut_start * keys
    end = np.minimum(origin + cut_end * keys, parts[:, PieceField.END])
    parts[:, PieceField.START], parts[:, PieceField.END] = start, end
    parts[:, PieceField.WHOLE_END] = np.clip(parts[:, PieceField.WHOLE_END], start, end)
    return parent, local, parts


def _order(costs: Ints, large: Ints) -> Ints:
    """Longest items first in large and in small tiles, both taken at a rate at which they last as long.

    Large tiles wait for the matrix units and small ones for memory, so that a processor which holds some of both kinds
    keeps both busy; large ones are all begun when `LARGE_SHARE` of the small ones are, since they take longest to end.
    Sorting is stable: items of one prefix stay side by side, and all but the first find its keys in the L2 cache.
    """
    order = np.argsort(-costs, kind="stable")
    begins = np.empty(len(costs))
    for kind, share in ((1, LARGE_SHARE), (0, 1.0)):
        chosen = order[large[order] == kind]
        ends = np.cumsum(costs[chosen] + ITEM_OVERHEAD)
        begins[chosen] = share * (ends - costs[chosen] - ITEM_OVERHEAD) / max(float(ends[-1:].sum()), 1.0)
    return np.argsort(begins, kind="stable")


def _splits(blocks: Ints, stacked: Ints, keys: int, processors: float) -> Ints:
    """Into how many items each tile is cut: the chunk of keys whose finish is soonest by the bound of list scheduling.

    With items in any order on p processors, the last one ends by total / p + largest (Graham, 1969); with at most p
    items, by the largest. So the cut that gives each processor one item is taken where it ends before the other can:
    not before total / p, nor before as many rounds of its smallest item as there are. A split adds its start and a
    partial result: 4 bytes written and read again for each 2 bytes of a query, beside 2 x 2 bytes a key.
    """
    if not len(blocks):
        return blocks
    partial = 2.0 * stacked / keys
    best, best_time, best_reach = np.ones_like(blocks), np.inf, np.inf
    one_round, one_round_time = best, np.inf
    for chunk in CHUNKS[: np.searchsorted(CHUNKS, blocks.max()) + 1]:
        splits = -(-blocks // chunk)
        extra = np.where(splits > 1, ITEM_OVERHEAD + partial, ITEM_OVERHEAD)
        sizes = np.where(splits > 0, -(-blocks // np.maximum(splits, 1)), 0) + extra
        items, largest = int(splits.sum()), float(sizes.max())
        share = float((blocks + splits * extra).sum()) / processors
        if share + largest <= best_time:
            rounds = np.ceil(items / processors)
            best, best_time, best_reach = splits, share + largest, max(share, rounds * float(sizes.min()))
        if items <= processors and largest < one_round_time:
            one_round, one_round_time = splits, largest
    return one_round if one_round_time <= best_reach else best


def _merges(row_start: Ints, partial: Ints, kept: Ints, cover: Ints) -> tuple[Int32s, Int32s, Int32s]:
    """Rows to merge, where each one's partial rows begin in the list, and the list."""
    offsets = ranges(kept)
    row = np.repeat(row_start, kept) + offsets
    source = np.repeat(partial, kept) + offsets
    order = np.argsort(row, kind="stable")
    count = np.bincount(row, minlength=len(cover))
    merge_rows = np.flatnonzero((count > 0) | (cover == 0))
    starts = np.concatenate(([0], np.cumsum(count[merge_rows])))
    return merge_rows.astype(np.int32), starts.astype(np.int32), source[order].astype(np.int32)
