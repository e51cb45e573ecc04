"""A block of keys that one row alone reads, against its few queries: scores, softmax, sums.

Elements are lanes here, because so few queries would fill none; where many rows share keys, queries are lanes
(`kernels.cpu.attention.attention_block`). All functions take `RowQueries`, a block of `Keys`, `Work`, the addresses of
the `Scratch` and what is `Ahead` (`kernels.cpu.attention.own_segment`).
"""

from typing import Any

import numpy as np

from kernels.cpu.attention.attention_block import cap
from kernels.cpu.attention.attention_scratch import KEYS, MAX_QUERIES
from kernels.cpu.attention.attention_work import LN2, LOG2E, PER_WORD
from kernels.cpu.attention.byte_kv import read_scales, row_size
from kernels.cpu.attention.row_products import CHUNK, finish_scores, row_byte_sums, row_scores, row_sums, to_int16
from kernels.cpu.attention.softmax import LOWEST, highest, weights
from kernels.cpu.language.jit import FASTMATH, njit
from kernels.cpu.language.openmp import exp, float32_at, int32_at
from kernels.cpu.language.vectors import LINE, WIDTH, prefetch, to_bfloat16
from kernels.kv_format import CHUNK as BYTE_CHUNK

_highest, _weights = highest(1, masked=False), weights(1)


def make_row_block(kind: str) -> Any:
    """For numba: `f(of, block, work, scratch, ahead)`: a block's keys against up to 4 queries, whose sums go on.

    `scratch.scores` takes 4 KEYS + 2 vectors of float32.
    """
    prepare, score, finish = _make_preparation(kind), _make_scores(kind), _make_finish(kind)
    softmax, sums = _make_softmax(kind), _make_sums(kind)

    @njit(error_model="numpy", fastmath=FASTMATH)
    def row_block(of: Any, block: Any, work: Any, scratch: Any, ahead: Any) -> None:
        prepare(block, work, scratch)
        for q in range(of.number):
            score(q, of, block, work, scratch, ahead)
            finish(q, of, block, scratch)
            softmax(q, of, block, work, scratch)
        sums(of, block, work, scratch)

    return row_block


def _make_preparation(kind: str) -> Any:
    @njit(error_model="numpy", inline="always")
    def in_bytes(block: Any, work: Any, scratch: Any) -> None:
        places = (scratch.key_scales, scratch.terms, scratch.inverses)
        read_scales(block.keys, block.values, block.length, work.dim, work.factor, places)

    @njit(error_model="numpy", inline="always")
    def nothing(block: Any, work: Any, scratch: Any) -> None:
        pass

    return in_bytes if kind == "bytes" else nothing


@njit(error_model="numpy")
def _fetch(ahead: Any, near: int, start: int, end: int) -> None:
    """Asks for lines `[start, end)` of what is `ahead`, whose nearer part has `near`, of keys and of values.

    A row's keys are read once, so they come from memory, and the processor foresees no more than a page; but many
    requests at once would hold up the loads.
    """
    if start < min(end, near):
        prefetch(ahead.values + LINE * start, min(end, near) - start)
        prefetch(ahead.keys + LINE * start, min(end, near) - start)
    start, end = max(start - near, 0), end - near
    if start < end:
        prefetch(ahead.later_values + LINE * start, end - start)
        prefetch(ahead.later_keys + LINE * start, end - start)


def _make_scores(kind: str) -> Any:
    """For numba: one query's scores, which bytes have in int32; its part of what is ahead is fetched meanwhile."""
    scores, per_word = row_scores(kind), PER_WORD[kind]

    @njit(error_model="numpy", inline="always")
    def score(q: int, of: Any, block: Any, work: Any, scratch: Any, ahead: Any) -> None:
        row, query_words = row_size(work.dim, 4 // per_word), work.dim // per_word
        near, lines = row * ahead.length // LINE, row * (ahead.length + ahead.later_length) // LINE
        vectors = -(block.length // -WIDTH)
        part = lines // (of.number * vectors) + 1
        start = part * vectors * q
        into, query = scratch.scores + 4 * q * KEYS, of.query + 4 * q * query_words
        for j in range(0, block.length, WIDTH):
            _fetch(ahead, near, start, min(start + part, lines))
            start += part
            here = min(WIDTH, block.length - j)
            scores(block.keys + j * row, row // 4, here, query, query_words // WIDTH, into + 4 * j)

    return score


def _make_finish(kind: str) -> Any:
    """For numba: one query's scores in float32."""

    @njit(error_model="numpy", inline="always")
    def in_bytes(q: int, of: Any, block: Any, scratch: Any) -> None:
        vectors, offset = -(block.length // -WIDTH), np.int64(int32_at(of.offsets, of.number)[q])
        scale = float32_at(of.scales, of.number)[q]
        finish_scores(scratch.scores + 4 * q * KEYS, vectors, offset, scale, scratch.key_scales, scratch.terms)

    @njit(error_model="numpy", inline="always")
    def nothing(q: int, of: Any, block: Any, scratch: Any) -> None:
        pass

    return in_bytes if kind == "bytes" else nothing


def _make_softmax(kind: str) -> Any:
    """For numba: one query's scores become weights as its sums take them; its sums so far go over to their pivot."""
    round_weights = _make_weights(kind)

    @njit(error_model="numpy", inline="always")
    def softmax(q: int, of: Any, block: Any, work: Any, scratch: Any) -> None:
        count, into, edge = block.length, scratch.scores + 4 * q * KEYS, scratch.scores + 4 * MAX_QUERIES * KEYS
        vectors, scores = -(count // -WIDTH), float32_at(into, KEYS)
        pivots, sums = float32_at(edge, WIDTH), float32_at(edge + 4 * WIDTH, WIDTH)
        bests, totals = float32_at(of.best, of.number), float32_at(of.total, of.number)
        scale = work.factor
        if work.softcap > np.float32(0):
            cap(scores, count, work.factor, work.softcap)
            scale = np.float32(LOG2E)
        for j in range(count, vectors * WIDTH):
            scores[j] = np.float32(LOWEST)
        _highest(into, vectors, edge, 0, 0, 0)
        pivot = pivots[0]
        for i in range(1, WIDTH):
            pivot = pivots[i] if pivots[i] > pivot else pivot
        pivot *= scale
        pivot = bests[q] if pivot < bests[q] else pivot
        pivots[:] = pivot
        _weights(into, vectors, scale, edge, sums.ctypes.data)
        correction = exp((bests[q] - pivot) * np.float32(LN2))
        bests[q] = pivot
        round_weights(into, vectors, scratch.inverses, sums.ctypes.data)
        summed = np.float32(0)
        for i in range(WIDTH):
            summed += sums[i]
        totals[q] = totals[q] * correction + summed
        mean = float32_at(of.means + 4 * q * work.dim, work.dim)
        for d in range(work.dim):
            mean[d] *= correction

    return softmax


def _make_weights(kind: str) -> Any:
    """For numba: `f(weights, vectors, inverses, sums)`: weights in float32 as values are multiplied by them."""
    if kind == "bytes":
        return to_int16

    @njit(error_model="numpy", inline="always")
    def in_pairs(weights: int, vectors: int, inverses: int, sums: int) -> None:
        to_bfloat16(weights, vectors, weights)

    @njit(error_model="numpy", inline="always")
    def nothing(weights: int, vectors: int, inverses: int, sums: int) -> None:
        pass

    return in_pairs if kind == "pairs" else nothing


def _make_sums(kind: str) -> Any:
    """For numba: `f(of, block, work, scratch)`: weights times values, for as many queries as there are."""
    per_word, step = PER_WORD[kind], BYTE_CHUNK if kind == "bytes" else CHUNK
    # The stride of values is in bytes for those, and else in words.
    unit = 1 if kind == "bytes" else 4
    sums_1, sums_2, sums_3, sums_4 = (
        row_byte_sums(queries) if kind == "bytes" else row_sums(kind, queries) for queries in (1, 2, 3, 4)
    )

    @njit(error_model="numpy", inline="always")
    def sums(of: Any, block: Any, work: Any, scratch: Any) -> None:
        weights, dim, count = scratch.scores, work.dim, block.length
        stride = row_size(dim, 4 // per_word) // unit
        for d in range(0, dim, step):
            values, out = block.values + 4 * (d // per_word), of.means + 4 * d
            if of.number == 1:
                sums_1(weights, KEYS, values, stride, count, out, dim)
            elif of.number == 2:
                sums_2(weights, KEYS, values, stride, count, out, dim)
            elif of.number == 3:
                sums_3(weights, KEYS, values, stride, count, out, dim)
            else:
                sums_4(weights, KEYS, values, stride, count, out, dim)

    return sums
