"""Scores of a piece's keys, and then what its values add: all lanes of a few vectors at once, a key at a time."""

from typing import Any

import numpy as np

from kernels.cpu.attention.attention_block import cap
from kernels.cpu.attention.attention_scratch import KEYS, MAX_VECTORS
from kernels.cpu.attention.ordered_keys import make_widen
from kernels.cpu.attention.ordered_softmax import ordered_weights
from kernels.cpu.attention.softmax import highest
from kernels.cpu.language.jit import njit
from kernels.cpu.language.openmp import float32_at
from kernels.cpu.language.vectors import WIDTH
from kernels.cpu.matmul.product import ROWS, product


def make_scores(vectors: int, kind: str) -> Any:
    """For numba: `f(piece, inner, work, scratch, room)`: the scores of a piece's keys, and the greatest so far."""
    taken, lanes, widen = ROWS[vectors], WIDTH * vectors, make_widen(kind)
    score_many, score_one = product(taken, vectors, "float32"), product(1, vectors, "float32")
    highest_, highest_masked = highest(vectors, masked=False), highest(vectors, masked=True)

    @njit(error_model="numpy")
    def scores(piece: Any, inner: tuple[int, int], work: Any, scratch: Any, room: int) -> None:
        dim, first = work.dim, piece.low // WIDTH * WIDTH
        queries, edge = scratch.queries.ctypes.data + 4 * first, scratch.edge.ctypes.data
        lower, upper = scratch.lower.ctypes.data + 4 * first, scratch.upper.ctypes.data + 4 * first
        found, best = scratch.edge, scratch.best[first : first + lanes]
        for key in range(piece.start, piece.end, KEYS):
            here, into = min(KEYS, piece.end - key), room + 4 * (key - piece.start) * lanes
            keys = widen(piece.keys, key, here, dim, False, scratch.wide)
            whole = here // taken * taken
            for k in range(0, whole, taken):
                score_many(keys + 4 * k * dim, dim, 1, queries, work.lanes, dim, into + 4 * k * lanes, lanes, 0)
            for k in range(whole, here):
                score_one(keys + 4 * k * dim, dim, 1, queries, work.lanes, dim, into + 4 * k * lanes, lanes, 0)
            if work.softcap > np.float32(0):
                cap(float32_at(into, here * lanes), here * lanes, work.factor, work.softcap)
            if inner[0] <= key and key + here <= inner[1]:
                highest_(into, here, edge, key, lower, upper)
            else:
                highest_masked(into, here, edge, key, lower, upper)
            for lane in range(lanes):
                # NaN stays.
                best[lane] = best[lane] if found[lane] <= best[lane] or best[lane] != best[lane] else found[lane]

    return scores


def make_sums(vectors: int, kind: str) -> Any:
    """For numba: `f(piece, factor, work, scratch, room)`: scores become weights; sums go on by weights and values."""
    taken, lanes, widen = ROWS[vectors], WIDTH * vectors, make_widen(kind)
    add_many, add_one = product(taken, vectors, "float32", adds=True), product(1, vectors, "float32", adds=True)
    weigh = ordered_weights(vectors)

    @njit(error_model="numpy")
    def sums(piece: Any, factor: Any, work: Any, scratch: Any, room: int) -> None:
        dim, first = work.dim, piece.low // WIDTH * WIDTH
        ones, totals = scratch.edge.ctypes.data + 4 * MAX_VECTORS * WIDTH, scratch.totals.ctypes.data + 4 * first
        pivots, total = scratch.best.ctypes.data + 4 * first, scratch.total.ctypes.data + 4 * first
        weigh(room, piece.end - piece.start, factor, pivots, total)
        _keep_others(piece, work, scratch)
        whole = dim // taken * taken
        for key in range(piece.start, piece.end, KEYS):
            here, weights = min(KEYS, piece.end - key), room + 4 * (key - piece.start) * lanes
            values = widen(piece.values, key, here, dim, True, scratch.wide)
            for d in range(0, whole, taken):
                add_many(values + 4 * d, 1, dim, weights, lanes, here, totals + 4 * d * work.lanes, work.lanes, ones)
            for d in range(whole, dim):
                add_one(values + 4 * d, 1, dim, weights, lanes, here, totals + 4 * d * work.lanes, work.lanes, ones)
        _restore_others(piece, work, scratch)

    return sums


@njit(error_model="numpy")
def _keep_others(piece: Any, work: Any, scratch: Any) -> None:
    """Keeps the sums of lanes that share a vector with a piece's: nothing times what is not finite is not nothing."""
    first, last = piece.low // WIDTH * WIDTH, (piece.high - 1) // WIDTH * WIDTH
    if piece.low == first and piece.high == last + WIDTH:
        return
    totals, kept = scratch.totals, scratch.kept
    for d in range(work.dim):
        for lane in range(WIDTH):
            kept[2 * d * WIDTH + lane] = totals[d * work.lanes + first + lane]
            kept[(2 * d + 1) * WIDTH + lane] = totals[d * work.lanes + last + lane]


@njit(error_model="numpy")
def _restore_others(piece: Any, work: Any, scratch: Any) -> None:
    first, last = piece.low // WIDTH * WIDTH, (piece.high - 1) // WIDTH * WIDTH
    if piece.low == first and piece.high == last + WIDTH:
        return
    totals, kept, before, behind = scratch.totals, scratch.kept, piece.low - first, piece.high - last
    for d in range(work.dim):
        for lane in range(before):
            totals[d * work.lanes + first + lane] = kept[2 * d * WIDTH + lane]
        for lane in range(behind, WIDTH):
            totals[d * work.lanes + last + lane] = kept[(2 * d + 1) * WIDTH + lane]
