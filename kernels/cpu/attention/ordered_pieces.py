"""What a few vectors of queries read of a tile's segments, one piece behind the other by the keys' positions."""

from typing import Any, NamedTuple

import numpy as np

from kernels.cpu.attention.attention_work import segment_at, whole_vectors
from kernels.cpu.attention.cpu_attention import keys_at
from kernels.cpu.language.jit import njit
from kernels.cpu.language.openmp import int64_at
from kernels.cpu.language.vectors import WIDTH


class Piece(NamedTuple):
    """Keys `[start, end)` of a segment, that lanes `[low, high)` read, in part or whole."""

    keys: int  # addresses of the segment's first
    values: int
    segment: int  # its number
    start: int
    end: int
    low: int
    high: int
    scores: int  # where its scores begin, in words


PIECE = 8


@njit(error_model="numpy", inline="always")
def piece_at(pieces: Any, index: int) -> Any:
    p = pieces[PIECE * index : PIECE * (index + 1)]
    return Piece(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7])


@njit(error_model="numpy")
def pieces_of(a: Any, index: int, tile: Any, work: Any, lanes: Any, size: int, out: Any) -> tuple[Any, Any]:
    """What lanes `[first, last)` of a tile read, by position, as rows of `out`; how many, and the words of scores."""
    positions, offsets = int64_at(a.positions, a.rows), int64_at(a.tile_offsets, a.num_tiles + 1)
    order, group = int64_at(a.tile_segments, offsets[a.num_tiles]), work.group
    first_row, last_row = lanes[0] // group, min(-(lanes[1] // -group), tile.rows)
    count, words = np.int64(0), np.int64(0)
    for at in range(offsets[index], offsets[index + 1]):
        segment = segment_at(a.segments, order[at])
        low, high = max(segment.row_start - tile.row, first_row), min(segment.row_end - tile.row, last_row)
        start, end = segment.kv_end - segment.kv_start, np.int64(0)
        for row in range(low, high):
            behind = positions[tile.row + row] - segment.position
            start, end = min(start, max(behind - work.window + 1, 0)), max(end, behind + 1)
        end = min(end, segment.kv_end - segment.kv_start)
        if end <= start:
            continue
        keys, values = keys_at(a, segment, tile.head, size)
        low, high = max(low * group, lanes[0]), min(high * group, lanes[1])
        piece = out[PIECE * count : PIECE * (count + 1)]
        piece[0], piece[1], piece[2], piece[3], piece[4] = keys, values, order[at], start, end
        piece[5], piece[6], piece[7] = low, high, words
        words += (end - start) * (whole_vectors(high, WIDTH) - low // WIDTH * WIDTH)
        count += 1
    return count, words


@njit(error_model="numpy")
def limit(a: Any, piece: Any, tile: Any, work: Any, scratch: Any) -> tuple[Any, Any]:
    """Writes which of a piece's keys each lane reads; returns those that all lanes of its vectors do."""
    segment, positions = segment_at(a.segments, piece.segment), int64_at(a.positions, a.rows)
    length, least, most = segment.kv_end - segment.kv_start, np.int64(0), segment.kv_end - segment.kv_start
    for lane in range(piece.low // WIDTH * WIDTH, whole_vectors(piece.high, WIDTH)):
        lower: Any = np.int64(0)
        upper: Any = np.int64(0)
        if piece.low <= lane < piece.high:
            behind = positions[tile.row + lane // work.group] - segment.position
            lower, upper = max(behind - work.window + 1, 0), min(behind + 1, length)
        scratch.lower[lane], scratch.upper[lane] = lower, max(upper, 0)
        least, most = max(least, lower), min(most, upper)
    return least, most
