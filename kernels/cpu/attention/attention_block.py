"""A block of keys against a few vectors of queries: scores, softmax, sums, all in a core's own cache."""

from typing import Any

import numpy as np

from kernels.cpu.attention.attention_scratch import KEYS, LINE
from kernels.cpu.attention.byte_kv import row_size
from kernels.cpu.attention.softmax import LOWEST, byte_weights, highest, paired_weights, rescale, weights
from kernels.cpu.language.jit import FASTMATH, njit
from kernels.cpu.language.openmp import exp
from kernels.cpu.language.vectors import WIDTH, prefetch
from kernels.cpu.matmul.product import ROWS, byte_scores, product, weighted_byte_product

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
    prefetch(keys + row * first, -(row * count // -LINE))
    prefetch(values + row * first, -(row * count // -LINE))


def make_block(vectors: int) -> Any:
    """A block of keys against 1, 2 or 3 vectors of queries: scores, softmax, sums."""
    lanes, taken = WIDTH * vectors, ROWS[vectors]
    scores, scores_pairs = product(taken, vectors, "float32"), product(taken, vectors, "pairs")
    score, score_pairs = product(1, vectors, "float32"), product(1, vectors, "pairs")
    scores_bytes, score_bytes = byte_scores(taken, vectors), byte_scores(1, vectors)
    sums, sums_pairs = product(taken, vectors, "float32", adds=True), product(taken, vectors, "pairs", adds=True)
    sum_, sum_pairs = product(1, vectors, "float32", adds=True), product(1, vectors, "pairs", adds=True)
    sums_bytes, weights_bytes = weighted_byte_product(taken, vectors), byte_weights(vectors)
    rescale_, rescale_pairs, rescale_bytes = (rescale(vectors, kind) for kind in ("float32", "pairs", "bytes"))
    highest_, highest_masked = highest(vectors, masked=False), highest(vectors, masked=True)
    weights_, weights_pairs = weights(vectors), paired_weights(vectors)

    @njit(error_model="numpy", fastmath=FASTMATH)
    def block(
        per_word: int,
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
        asks: int,
    ) -> None:
        """`count` keys, of which the first is key `first_key` of its segment, for the queries from `lane` on.

        `per_word` elements are in a word. `scratch` is a `Scratch`, of whose lanes there are `stride`.
        """
        best, total, upper, room, factors = scratch.best, scratch.total, scratch.upper, scratch.scores, scratch.edges
        at, into = scratch.queries.ctypes.data + 4 * lane, room.ctypes.data
        key_scales, terms = scratch.key_scales.ctypes.data, scratch.terms.ctypes.data
        zeros, query_scales = scratch.query_offsets.ctypes.data + 4 * lane, scratch.query_scales.ctypes.data + 4 * lane
        step, row = dim // per_word, row_size(dim, 4 // per_word)
        words = row // 4
        for first in range(0, count, taken):
            here = min(taken, count - first)
            if asks:
                # The next block is asked for bit by bit while this one is scored: few queries would wait for it.
                ask(keys, values, row, first + KEYS, here)
            if here == taken:
                a, c, scale = keys + first * row, into + 4 * first * lanes, key_scales + 4 * first
                if per_word == 4:
                    term = terms + 4 * first
                    scores_bytes(a, words, at, stride, step, c, lanes, zeros, query_scales, scale, term)
                elif per_word == 2:
                    scores_pairs(a, words, 1, at, stride, step, c, lanes, 0)
                else:
                    scores(a, words, 1, at, stride, step, c, lanes, 0)
                continue
            for j in range(first, count):
                a, c, scale = keys + j * row, into + 4 * j * lanes, key_scales + 4 * j
                if per_word == 4:
                    term = terms + 4 * j
                    score_bytes(a, words, at, stride, step, c, lanes, zeros, query_scales, scale, term)
                elif per_word == 2:
                    score_pairs(a, words, 1, at, stride, step, c, lanes, 0)
                else:
                    score(a, words, 1, at, stride, step, c, lanes, 0)
        if softcap > np.float32(0):
            cap(room, count * lanes, factor, softcap)
            factor = np.float32(LOG2E)
        steps = -(count // -per_word)
        room[count * lanes : per_word * steps * lanes] = np.float32(LOWEST)
        pivots, part, shares = factors[lanes:], factors[2 * lanes :], factors[3 * lanes :]
        low, high = scratch.lower.ctypes.data + 4 * lane, upper.ctypes.data + 4 * lane
        pivot, share, corrections = pivots.ctypes.data, shares.ctypes.data, factors.ctypes.data
        if masked:
            highest_masked(into, count, pivot, first_key, low, high)
        else:
            highest_(into, count, pivot, first_key, low, high)
        over = best.ctypes.data + 4 * lane
        if per_word == 4:
            rescale_bytes(pivot, factor, over, high, corrections, share)
            inverses, dithers = scratch.inverses.ctypes.data, scratch.dithers.ctypes.data
            weights_bytes(into, 4 * steps, factor, pivot, share, inverses, dithers, part.ctypes.data)
        elif per_word == 2:
            rescale_pairs(pivot, factor, over, high, corrections, 0)
            weights_pairs(into, 2 * steps, factor, pivot, part.ctypes.data)
        else:
            rescale_(pivot, factor, over, high, corrections, 0)
            weights_(into, count, factor, pivot, part.ctypes.data)
        for i in range(lanes):
            total[lane + i] = total[lane + i] * factors[i] + part[i]
        target = scratch.totals.ctypes.data + 4 * lane
        source = scratch.values.ctypes.data if per_word > 1 else values
        full = dim // taken * taken
        for d in range(0, full, taken):
            c = target + 4 * d * stride
            if per_word == 4:
                sums_bytes(source + 4 * d, 1, dim, into, lanes, steps, c, stride, corrections, share)
            elif per_word == 2:
                sums_pairs(source + 4 * d, 1, dim, into, lanes, steps, c, stride, corrections)
            else:
                sums(source + 4 * d, 1, dim, into, lanes, steps, c, stride, corrections)
        for d in range(full, dim):  # of bytes there are none: `dim` is a multiple
            c = target + 4 * d * stride
            if per_word == 2:
                sum_pairs(source + 4 * d, 1, dim, into, lanes, steps, c, stride, corrections)
            else:
                sum_(source + 4 * d, 1, dim, into, lanes, steps, c, stride, corrections)

    return block
