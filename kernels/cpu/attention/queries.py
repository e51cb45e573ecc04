"""Packs a tile's queries: as they lie for keys that one row reads, as lanes of vectors for those that rows share."""

from typing import Any

import numpy as np

from kernels.cpu.attention.attention_work import place_of, whole_vectors
from kernels.cpu.attention.byte_kv import LEAST_KEY, largest_magnitude
from kernels.cpu.language.hadamard import to_bytes
from kernels.cpu.language.jit import njit
from kernels.cpu.language.openmp import bfloat16_bits, float32_at, int8_at, int32_at, uint16_at
from kernels.cpu.language.transpose import transpose
from kernels.cpu.language.vectors import WIDTH, part_pairs, to_bfloat16
from kernels.processor import NATIVE_BFLOAT16


def make_queries(kind: str) -> Any:
    """For numba: `f(a, tile, work, scratch)`: the queries of a tile, for keys of a kind, by_lane and as queries."""
    if kind == "bytes":
        return _quantize
    if kind == "float32":
        return in_float32
    return _in_pairs if NATIVE_BFLOAT16 else in_parted_pairs


@njit(error_model="numpy")
def in_float32(a: Any, tile: Any, work: Any, scratch: Any) -> None:
    _pack(a, tile, work, False, scratch.by_lane, scratch.queries)


@njit(error_model="numpy")
def _in_pairs(a: Any, tile: Any, work: Any, scratch: Any) -> None:
    _pack(a, tile, work, True, scratch.by_lane, scratch.queries)


@njit(error_model="numpy")
def in_parted_pairs(a: Any, tile: Any, work: Any, scratch: Any) -> None:
    """Rounded to bfloat16; as lanes in float32, because no instruction multiplies pairs here."""
    _pack(a, tile, work, True, scratch.by_lane, scratch.totals)
    part_pairs(scratch.totals.ctypes.data, work.dim // 2, work.lanes // WIDTH, 0, scratch.queries.ctypes.data)


@njit(error_model="numpy")
def _pack(a: Any, tile: Any, work: Any, pairs: bool, by_lane: Any, queries: Any) -> None:
    """Queries in float32 or `pairs` of bfloat16: by_lane[lane, word] as they lie, queries[word, lane] as lanes."""
    dim = work.dim
    words = dim // 2 if pairs else dim
    for lane in range(tile.rows * work.group):
        start = place_of(tile, work.group, lane, a.query_row, a.query_head)
        made = by_lane[lane * words : (lane + 1) * words]
        halves = uint16_at(by_lane.ctypes.data + 4 * lane * words, dim)
        if a.query_is_bfloat16:
            source = uint16_at(a.query + 2 * start, dim)
            for d in range(dim):
                halves[d] = source[d]
        elif pairs and dim % WIDTH == 0:
            to_bfloat16(a.query + 4 * start, dim // WIDTH, halves.ctypes.data)
        else:
            floats = float32_at(a.query + 4 * start, dim)
            if pairs:
                for d in range(dim):
                    halves[d] = np.uint16(bfloat16_bits(floats[d]))
            else:
                for d in range(dim):
                    made[d] = floats[d]
    lanes = whole_vectors(tile.rows * work.group, WIDTH)
    transpose(by_lane.ctypes.data, words, lanes, words, queries.ctypes.data, work.lanes)


@njit(error_model="numpy")
def _quantize(a: Any, tile: Any, work: Any, scratch: Any) -> None:
    """Queries in float32 as signed bytes: by_lane[lane, word] as they lie, queries[word, lane] as lanes of vectors.

    With them `query_scales` and `query_offsets`: what the keys' zero adds to a product, negated.
    """
    dim, words = work.dim, work.dim // 4
    by_lane = scratch.by_lane.ctypes.data
    scales, offsets = scratch.query_scales, int32_at(scratch.query_offsets.ctypes.data, work.lanes)
    for lane in range(tile.rows * work.group):
        source = a.query + 4 * place_of(tile, work.group, lane, a.query_row, a.query_head)
        made, total = int8_at(by_lane + lane * dim, dim), np.int32(0)
        largest = largest_magnitude(source, dim // WIDTH)
        to_bytes(source, np.float32(127) / max(largest, np.float32(LEAST_KEY)), made.ctypes.data, dim // WIDTH, 0)
        for d in range(dim):
            total += np.int32(made[d])
        scales[lane], offsets[lane] = largest * np.float32(1 / 127), np.int32(-128) * total
    lanes = whole_vectors(tile.rows * work.group, WIDTH)
    transpose(by_lane, words, lanes, words, scratch.queries.ctypes.data, work.lanes)
