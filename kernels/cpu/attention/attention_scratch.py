"""What a thread of attention on the CPU keeps between a tile's segments, and room for a block of their keys."""

from typing import Any, NamedTuple

import numpy as np

from kernels.cpu.attention.softmax import DITHER
from kernels.cpu.language.jit import njit
from kernels.cpu.language.openmp import lines_of
from kernels.cpu.language.vectors import WIDTH
from kernels.processor import NATIVE_BFLOAT16

# Keys whose scores exist at one time: with their values they stay in a core's own cache.
KEYS = 128
# Vectors of queries that a block takes at once.
MAX_VECTORS = 3
# Queries of one row that meet its own keys at once: their sums are held in registers.
MAX_QUERIES = 4


class Scratch(NamedTuple):
    """Flat, of float32 where nothing else is said. A lane is a query of the tile; words hold its elements."""

    by_lane: Any  # (lanes, words): queries as they came, in the end what they attended
    queries: Any  # (words, lanes)
    totals: Any  # (dim, lanes): weighted sums of values, of blocks' keys
    best: Any  # (lanes,): the power of two that their weights are over
    total: Any  # (lanes,): sums of those weights
    lower: Any  # (lanes,) int32: the keys of the segment that each reads, from here
    upper: Any  # (lanes,) int32: to here; 0 for none
    kept: Any  # (2, dim + 1, vector): of vectors at a segment's edges, `totals` and `total` before it
    bounds: Any  # (vectors, 4) int64: of a block's lanes, keys that any reads and those that all do
    scores: Any  # (KEYS + 1, 3 vectors)
    edges: Any  # 12 vectors: corrections, pivots, sums and shares of a block's
    keys: Any  # (KEYS, dim): of bfloat16, where no instruction multiplies it
    values: Any  # the same, or (KEYS / 2, dim): pairs of neighbouring keys, or four of them in bytes
    means: Any  # (lanes, dim): as `totals`, of keys that one row reads
    tops: Any  # (lanes,): as `best`
    parts: Any  # (lanes,): as `total`
    key_scales: Any  # (KEYS,)
    terms: Any  # (KEYS,): what scores have added for their values' scales
    inverses: Any  # (KEYS,): of those scales
    dithers: Any  # (KEYS,): what weights in 8 bits have added before they are rounded
    query_scales: Any  # (lanes,)
    query_offsets: Any  # (lanes,) int32: what the keys' zero adds to a score, negated


@njit(error_model="numpy")
def addresses_of(scratch: Any) -> Any:
    """The same, of addresses: what blocks take, since slices of arrays are counted by atomic instructions."""
    return Scratch(
        scratch.by_lane.ctypes.data,
        scratch.queries.ctypes.data,
        scratch.totals.ctypes.data,
        scratch.best.ctypes.data,
        scratch.total.ctypes.data,
        scratch.lower.ctypes.data,
        scratch.upper.ctypes.data,
        scratch.kept.ctypes.data,
        scratch.bounds.ctypes.data,
        scratch.scores.ctypes.data,
        scratch.edges.ctypes.data,
        scratch.keys.ctypes.data,
        scratch.values.ctypes.data,
        scratch.means.ctypes.data,
        scratch.tops.ctypes.data,
        scratch.parts.ctypes.data,
        scratch.key_scales.ctypes.data,
        scratch.terms.ctypes.data,
        scratch.inverses.ctypes.data,
        scratch.dithers.ctypes.data,
        scratch.query_scales.ctypes.data,
        scratch.query_offsets.ctypes.data,
    )


@njit(error_model="numpy")
def scratch_for(lanes: int, dim: int) -> Any:
    """`lanes` is in whole vectors."""
    by_lane, queries = lines_of(lanes * dim), lines_of(lanes * dim)
    by_lane[:], queries[:] = np.float32(0), np.float32(0)
    query_scales, query_offsets = lines_of(lanes), lines_of(lanes)
    query_scales[:], query_offsets[:] = np.float32(0), np.float32(0)
    dithers = lines_of(KEYS)
    for key in range(KEYS):
        dithers[key] = np.float32((DITHER * key) % 1.0 - 0.5)
    return Scratch(
        by_lane,
        queries,
        lines_of(lanes * dim),
        lines_of(lanes),
        lines_of(lanes),
        np.empty(lanes, np.int32),
        np.empty(lanes, np.int32),
        lines_of(2 * (dim + 1) * WIDTH),
        np.empty(4 * (lanes // WIDTH), np.int64),
        lines_of((KEYS + 1) * MAX_VECTORS * WIDTH),
        lines_of(4 * MAX_VECTORS * WIDTH),
        lines_of(0 if NATIVE_BFLOAT16 else KEYS * dim),
        lines_of(KEYS // 2 * dim if NATIVE_BFLOAT16 else KEYS * dim),
        lines_of(lanes * dim),
        lines_of(lanes),
        lines_of(lanes),
        lines_of(KEYS),
        lines_of(KEYS),
        lines_of(KEYS),
        dithers,
        query_scales,
        query_offsets,
    )
