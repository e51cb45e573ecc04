"""A block of keys against a few vectors of queries: scores, softmax, sums, all in a core's own cache."""

from typing import Any

import numpy as np
from numba import njit

from kernels.attention_scratch import KEYS, LINE
from kernels.openmp import FASTMATH, exp
from kernels.product import ROWS, byte_product, product, weighted_byte_product
from kernels.softmax import LOWEST, byte_weights, highest, paired_weights, rescale, weights
from kernels.vectors import WIDTH, prefetch

# What of a block is in 8 bits: its scores, or weights and values as well.
SCORES, VALUES = 1, 2
LOG2E, LN2 = 1.4426950408889634, 0.6931471805599453


@njit(error_model="numpy", fastmath=FASTMATH)
def cap(scores: Any, count: int, factor: Any, softcap: Any) -> None:
    """Scores become softcap * tanh(score * factor / 2), in place: tanh(x / 2) = (1 - e^-x) / (1 + e^-x)."""
    for i in range(count):
        x = scores[i] * factor
        size = exp(-abs(x))
        share = (np.float32(1) - size) / (np.float32(1) + size)
        scores[i] = softcap * (share if x > np.float32(0) else -share)


@njit(error_model="numpy", inline="always")
def ask(keys: int, values: int, row: int, first: int, count: int) -> None:
    """Brings `count` keys and values of `row` bytes nearer."""
    prefetch(keys + row * first, row * count // LINE)
    prefetch(values + row * first, row * count // LINE)


def make_block(vectors: int) -> Any:
    """A block of keys against 1, 2 or 3 vectors of queries: scores, softmax, sums."""
    lanes, taken = WIDTH * vectors, ROWS[vectors]
    scores, scores_pairs = product(taken, vectors, "float32"), product(taken, vectors, "pairs")
    scores_bytes = byte_product(taken, vectors, adds=False)
    score, score_pairs = product(1, vectors, "float32"), product(1, vectors, "pairs")
    sums, sums_pairs = product(taken, vectors, "float32", adds=True), product(taken, vectors, "pairs", adds=True)
    sum_, sum_pairs = product(1, vectors, "float32", adds=True), product(1, vectors, "pairs", adds=True)
    sums_bytes, weights_bytes = weighted_byte_product(taken, vectors), byte_weights(vectors)
    rescale_, rescale_pairs, rescale_bytes = (rescale(vectors, kind) for kind in ("float32", "pairs", "bytes"))
    highest_, highest_masked = highest(vectors, masked=False), highest(vectors, masked=True)
    weights_, weights_pairs = weights(vectors), paired_weights(vectors)

    @njit(error_model="numpy", fastmath=FASTMATH)
    def block(
        pairs: int,
        count: int,
        dim: int,
        lane: int,
        stride: int,
        keys: int,
        values: int,
        masked: int,
        first_key: Any,
        factor: Any,
        softcap: Any,
        scratch: Any,
        by_bytes: int,
        asks: int,
    ) -> None:
        """`count` keys, of which the first is key `first_key` of its segment, for the queries from `lane` on.

        `scratch` is a `Scratch`, of whose lanes there are `stride`. `by_bytes` is 0, or SCORES: its keys and queries
        are there in 8 bits; or VALUES: its values too.
        """
        best, total, upper, room, factors = scratch.best, scratch.total, scratch.upper, scratch.scores, scratch.edges
        at, into = scratch.queries.ctypes.data + 4 * lane, room.ctypes.data
        # The next block is asked for bit by bit while this one is scored: few queries wait for memory otherwise.
        row = (2 if pairs else 4) * dim
        if by_bytes:
            few, scales, step = scratch.byte_keys.ctypes.data, scratch.key_scales.ctypes.data, dim // 4
            b, zeros = scratch.byte_queries.ctypes.data + 4 * lane, scratch.query_offsets.ctypes.data + 4 * lane
            query_scales = scratch.query_scales.ctypes.data + 4 * lane
            for j in range(0, count, taken):  # may go on behind `count`: there is room for whole blocks
                a, c = few + j * dim, into + 4 * j * lanes
                if asks:
                    ask(keys, values, row, j + KEYS, taken)
                scores_bytes(a, step, b, stride, step, c, lanes, zeros, query_scales, scales + 4 * j)
        elif pairs:
            step = dim // 2
            full = count // taken * taken
            for j in range(0, full, taken):
                if asks:
                    ask(keys, values, row, j + KEYS, taken)
                scores_pairs(keys + 4 * j * step, step, 1, at, stride, step, into + 4 * j * lanes, lanes, 0)
            for j in range(full, count):
                score_pairs(keys + 4 * j * step, step, 1, at, stride, step, into + 4 * j * lanes, lanes, 0)
        else:
            full = count // taken * taken
            for j in range(0, full, taken):
                if asks:
                    ask(keys, values, row, j + KEYS, taken)
                scores(keys + 4 * j * dim, dim, 1, at, stride, dim, into + 4 * j * lanes, lanes, 0)
            for j in range(full, count):
                score(keys + 4 * j * dim, dim, 1, at, stride, dim, into + 4 * j * lanes, lanes, 0)
        if softcap > np.float32(0):
            cap(room, count * lanes, factor, softcap)
            factor = np.float32(LOG2E)
        whole = -(count // -4) * 4 if by_bytes == VALUES else count + count % 2 if pairs else count
        room[count * lanes : whole * lanes] = np.float32(LOWEST)
        pivots, part, shares = factors[lanes:], factors[2 * lanes :], factors[3 * lanes :]
        low, high = scratch.lower.ctypes.data + 4 * lane, upper.ctypes.data + 4 * lane
        pivot, share, corrections = pivots.ctypes.data, shares.ctypes.data, factors.ctypes.data
        if masked:
            highest_masked(into, count, pivot, first_key, low, high)
        else:
            highest_(into, count, pivot, first_key, low, high)
        over = best.ctypes.data + 4 * lane
        if by_bytes == VALUES:
            rescale_bytes(pivot, factor, over, high, corrections, share)
            weights_bytes(into, whole, factor, pivot, share, part.ctypes.data)
        elif pairs:
            rescale_pairs(pivot, factor, over, high, corrections, 0)
            weights_pairs(into, whole, factor, pivot, part.ctypes.data)
        else:
            rescale_(pivot, factor, over, high, corrections, 0)
            weights_(into, count, factor, pivot, part.ctypes.data)
        for i in range(lanes):
            total[lane + i] = total[lane + i] * factors[i] + part[i]
        target = scratch.totals.ctypes.data + 4 * lane
        source = scratch.values.ctypes.data if pairs else values
        steps = (count + 1) // 2 if pairs else count
        full = dim // taken * taken
        for d in range(0, full, taken):
            c = target + 4 * d * stride
            if by_bytes == VALUES:
                few = scratch.value_scales.ctypes.data + 4 * d
                sums_bytes(source + 4 * d, 1, dim, into, lanes, whole // 4, c, stride, corrections, share, few)
            elif pairs:
                sums_pairs(source + 4 * d, 1, dim, into, lanes, steps, c, stride, corrections)
            else:
                sums(source + 4 * d, 1, dim, into, lanes, steps, c, stride, corrections)
        for d in range(full, dim):
            c = target + 4 * d * stride
            if pairs:
                sum_pairs(source + 4 * d, 1, dim, into, lanes, steps, c, stride, corrections)
            else:
                sum_(source + 4 * d, 1, dim, into, lanes, steps, c, stride, corrections)

    return block
