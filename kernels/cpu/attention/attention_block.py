"""A block of keys against a few vectors of queries: scores, softmax, sums, all in a core's own cache.

For each kind of keys and 1, 2 or 3 vectors of queries these are functions of their own, which take a `Block`, the
`Work` and the addresses of the `Scratch`.
"""

from typing import Any

import numpy as np

from kernels.cpu.attention.attention_scratch import KEYS
from kernels.cpu.attention.attention_work import LOG2E, PER_WORD
from kernels.cpu.attention.byte_kv import row_size
from kernels.cpu.attention.softmax import LOWEST, byte_weights, highest, paired_weights, rescale, weights
from kernels.cpu.language.jit import FASTMATH, njit
from kernels.cpu.language.openmp import exp, float32_at
from kernels.cpu.language.vectors import LINE, WIDTH, prefetch
from kernels.cpu.matmul.product import ROWS, byte_scores, product, weighted_byte_product


@njit(error_model="numpy", fastmath=FASTMATH)
def cap(scores: Any, count: int, factor: Any, softcap: Any) -> None:
    """Scores become softcap * tanh(score * factor / 2), in place: tanh(x / 2) = (1 - e^-x) / (1 + e^-x)."""
    for i in range(count):
        x = scores[i] * factor
        size = exp(-abs(x))
        share = (np.float32(1) - size) / (np.float32(1) + size)
        scores[i] = softcap * (share if x > np.float32(0) else -share)


def make_block(vectors: int, kind: str) -> Any:
    """For numba: `f(block, work, scratch)`: what a block adds to the sums of 1, 2 or 3 vectors of queries."""
    scores, softmax, sums = _make_scores(vectors, kind), _make_softmax(vectors, kind), _make_sums(vectors, kind)

    @njit(error_model="numpy", fastmath=FASTMATH)
    def block_of(block: Any, work: Any, scratch: Any) -> None:
        scores(block, work, scratch)
        softmax(block, work, scratch)
        sums(block, work, scratch)

    return block_of


def _make_scores(vectors: int, kind: str) -> Any:
    """For numba: `f(block, work, scratch)`: `scratch.scores` of a block's keys, lane by lane."""
    lanes, taken, per_word = WIDTH * vectors, ROWS[vectors], PER_WORD[kind]
    score_many, score_one = _key_scores(taken, vectors, kind), _key_scores(1, vectors, kind)

    @njit(error_model="numpy", inline="always")
    def scores(block: Any, work: Any, scratch: Any) -> None:
        lane, length = 4 * block.lane, block.length
        queries, into = scratch.queries + lane, scratch.scores
        zeros, query_scales = scratch.query_offsets + lane, scratch.query_scales + lane
        key_scales, terms = scratch.key_scales, scratch.terms
        steps, row = work.dim // per_word, row_size(work.dim, 4 // per_word)
        of_queries = (queries, work.lanes, steps, zeros, query_scales)
        for first in range(0, length, taken):
            here = min(taken, length - first)
            if block.prefetches:
                # The next block comes bit by bit while this one is scored: few queries would wait for it.
                prefetch(block.keys + row * (first + KEYS), -(row * here // -LINE))
                prefetch(block.values + row * (first + KEYS), -(row * here // -LINE))
            if here == taken:
                of_keys = (block.keys + first * row, row // 4, key_scales + 4 * first, terms + 4 * first)
                score_many(of_keys, of_queries, into + 4 * first * lanes, lanes)
                continue
            for key in range(first, length):
                of_keys = (block.keys + key * row, row // 4, key_scales + 4 * key, terms + 4 * key)
                score_one(of_keys, of_queries, into + 4 * key * lanes, lanes)

    return scores


def _key_scores(keys: int, vectors: int, kind: str) -> Any:
    """For numba: `f(of_keys, of_queries, out, out_row)`: out (keys, vectors) in float32, at an address.

    `of_keys`: address, stride in words, scales and terms; `of_queries`: address, stride, words of a query, what the
    keys' zero adds, and scales. Bytes alone have scales, terms and zeros.
    """
    in_bytes, multiply = byte_scores(keys, vectors), product(keys, vectors, "pairs" if kind == "pairs" else "float32")

    @njit(error_model="numpy", inline="always")
    def byte_keys(of_keys: Any, of_queries: Any, out: int, out_row: int) -> None:
        a, a_row, key_scales, terms = of_keys
        b, b_row, steps, zeros, query_scales = of_queries
        in_bytes(a, a_row, b, b_row, steps, out, out_row, zeros, query_scales, key_scales, terms)

    @njit(error_model="numpy", inline="always")
    def other_keys(of_keys: Any, of_queries: Any, out: int, out_row: int) -> None:
        multiply(of_keys[0], of_keys[1], 1, of_queries[0], of_queries[1], of_queries[2], out, out_row, 0)

    return byte_keys if kind == "bytes" else other_keys


def _make_softmax(vectors: int, kind: str) -> Any:
    """For numba: `f(block, work, scratch)`: scores become weights, and the sums of weights go on.

    `scratch.edges` gets four rows of lanes: what sums so far are multiplied by, pivots, the block's own sums, and what
    the products of weights in bytes are multiplied by.
    """
    lanes, per_word = WIDTH * vectors, PER_WORD[kind]
    rescale_, weigh = rescale(vectors, kind), _make_weights(vectors, kind)
    highest_, highest_masked = highest(vectors, masked=False), highest(vectors, masked=True)

    @njit(error_model="numpy", inline="always")
    def softmax(block: Any, work: Any, scratch: Any) -> None:
        lane, length, factor = block.lane, block.length, work.factor
        whole = -(length // -per_word) * per_word
        room = float32_at(scratch.scores, whole * lanes)
        if work.softcap > np.float32(0):
            cap(room, length * lanes, factor, work.softcap)
            factor = np.float32(LOG2E)
        room[length * lanes : whole * lanes] = np.float32(LOWEST)
        into, edges = scratch.scores, scratch.edges
        pivots, sums, shares = edges + 4 * lanes, edges + 8 * lanes, edges + 12 * lanes
        lower, upper = scratch.lower + 4 * lane, scratch.upper + 4 * lane
        if block.is_masked:
            highest_masked(into, length, pivots, block.first_key, lower, upper)
        else:
            highest_(into, length, pivots, block.first_key, lower, upper)
        rescale_(pivots, factor, scratch.best + 4 * lane, upper, edges, shares)
        weigh(into, whole, factor, pivots, shares, scratch.inverses, scratch.dithers, sums)
        corrections, part = float32_at(edges, lanes), float32_at(sums, lanes)
        total = float32_at(scratch.total + 4 * lane, lanes)
        for i in range(lanes):
            total[i] = total[i] * corrections[i] + part[i]

    return softmax


def _make_weights(vectors: int, kind: str) -> Any:
    """For numba, as `byte_weights` for every kind; bytes alone have shares, inverses and dithers."""
    if kind == "bytes":
        return byte_weights(vectors)
    made = weights(vectors) if kind == "float32" else paired_weights(vectors)

    @njit(error_model="numpy", inline="always")
    def weigh(
        scores: int, count: int, factor: Any, pivot: int, shares: int, inverses: int, dithers: int, sums: int
    ) -> None:
        made(scores, count, factor, pivot, sums)

    return weigh


def _make_sums(vectors: int, kind: str) -> Any:
    """For numba: `f(block, work, scratch)`: `scratch.totals` go on by the block's weights times its values."""
    lanes, taken, per_word = WIDTH * vectors, ROWS[vectors], PER_WORD[kind]
    add_many, add_one = _value_sums(taken, vectors, kind), _value_sums(1, vectors, kind)

    @njit(error_model="numpy", inline="always")
    def sums(block: Any, work: Any, scratch: Any) -> None:
        dim, totals = work.dim, scratch.totals + 4 * block.lane
        edges = scratch.edges
        of_weights = (scratch.scores, lanes, -(block.length // -per_word), edges, edges + 12 * lanes)
        whole = dim // taken * taken
        for d in range(0, whole, taken):
            add_many(block.packed + 4 * d, dim, of_weights, totals + 4 * d * work.lanes, work.lanes)
        for d in range(whole, dim):
            add_one(block.packed + 4 * d, dim, of_weights, totals + 4 * d * work.lanes, work.lanes)

    return sums


def _value_sums(elements: int, vectors: int, kind: str) -> Any:
    """For numba: `f(values, value_row, of_weights, out, out_row)`: out (elements, vectors) goes on, at an address.

    `of_weights`: address, stride, words of keys, what out is multiplied by first and, of bytes, what products are.
    """
    in_bytes = weighted_byte_product(elements, vectors)
    multiply = product(elements, vectors, "pairs" if kind == "pairs" else "float32", adds=True)

    @njit(error_model="numpy", inline="always")
    def byte_values(values: int, value_row: int, of_weights: Any, out: int, out_row: int) -> None:
        b, b_row, steps, corrections, shares = of_weights
        in_bytes(values, 1, value_row, b, b_row, steps, out, out_row, corrections, shares)

    @njit(error_model="numpy", inline="always")
    def other_values(values: int, value_row: int, of_weights: Any, out: int, out_row: int) -> None:
        b, b_row, steps, corrections, _ = of_weights
        multiply(values, 1, value_row, b, b_row, steps, out, out_row, corrections)

    return byte_values if kind == "bytes" else other_values
