"""Keys that one row alone reads, against its few queries.

Elements are lanes here, because so few queries would fill none; where many rows share keys, queries are lanes
(`kernels.attention_block`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from kernels.attention_block import LN2, LOG2E, cap
from kernels.attention_scratch import KEYS, LINE, MAX_QUERIES
from kernels.openmp import FASTMATH, exp
from kernels.softmax import LOWEST, highest, weights
from kernels.vectors import FLOAT, FLOATS, HALVES, LONG, WIDTH, WORD, WORDS, Vectors, floats, narrow_vectors, prefetch

# Elements of a row that are read at once; `dim` is a multiple.
CHUNK = 2 * WIDTH


def _row_scores(kind: str) -> Callable[..., None]:
    """For numba: `f(keys, key_words, count, query, steps, out)`: one query's scores of `count` <= 16 keys, as a vector.

    `key_words` is the stride of keys and `steps` the vectors of words in one. What is behind `count` is unspecified.
    """

    @intrinsic
    def f(_: Any, keys: Any, key_words: Any, count: Any, query: Any, steps: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            keys, key_words, count, query, steps, out = arguments
            emit, many = Vectors(builder), FLOATS if kind == "float32" else WORDS
            last = builder.sub(count, LONG(1))
            rows = []
            for key in range(WIDTH):
                place = builder.select(builder.icmp_signed("<", LONG(key), last), LONG(key), last)
                rows.append(emit.address(keys, builder.mul(place, key_words)))

            def step(index: Any, sums: list[Any]) -> list[Any]:
                at = builder.mul(index, LONG(WIDTH))
                asked = emit.operand(emit.load(many, emit.address(query, at)), kind)
                loaded = [emit.operand(emit.load(many, emit.address(row, at)), kind) for row in rows]
                return [emit.multiply(key, asked, total, kind) for key, total in zip(loaded, sums, strict=True)]

            sums = emit.loop(steps, [floats(0.0)] * WIDTH, step)
            # Neighbours are added until each vector is a lane of one: 16, 8, 4 and 2 lanes belong to a key before.
            while len(sums) > 1:
                sums = [
                    builder.fadd(_every_second(builder, left, right, 0), _every_second(builder, left, right, 1))
                    for left, right in zip(sums[::2], sums[1::2], strict=True)
                ]
            emit.store(sums[0], out)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return f  # type: ignore[no-any-return]


def _every_second(builder: Any, left: Any, right: Any, first: int) -> Any:
    return builder.shuffle_vector(left, right, ir.Constant(WORDS, [*range(first, 2 * WIDTH, 2)]))


def _row_sums(kind: str, queries: int) -> Callable[..., None]:
    """For numba: `f(weights, weight_words, values, value_words, count, out, out_words)`, for 32 elements of values.

    out (queries, ...) += weights (queries, count) @ values (count, ...). In pairs, weights are words of two keys', of
    which the one behind an odd `count` is zero.
    """
    pairs = kind == "pairs"

    @intrinsic
    def f(
        _: Any, weights: Any, weight_words: Any, values: Any, value_words: Any, count: Any, out: Any, out_words: Any
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            weights, weight_words, values, value_words, count, out, out_words = arguments
            emit = Vectors(builder)
            rows = [emit.address(weights, builder.mul(weight_words, LONG(q))) for q in range(queries)]
            cells = [
                emit.address(out, builder.add(builder.mul(out_words, LONG(q)), LONG(v * WIDTH)))
                for q in range(queries)
                for v in range(2)
            ]
            last = builder.sub(count, LONG(1))

            def operands(index: Any) -> list[tuple[Any, ...]]:
                if not pairs:
                    row = emit.address(values, builder.mul(index, value_words))
                    return [(emit.load(FLOATS, emit.address(row, LONG(v * WIDTH))),) for v in range(2)]
                first = builder.shl(index, LONG(1))
                second = builder.add(first, LONG(1))
                second = builder.select(builder.icmp_signed("<", second, last), second, last)
                even, odd = (
                    emit.load(HALVES, emit.address(values, builder.mul(key, value_words))) for key in (first, second)
                )
                words = []
                for start in (0, WIDTH):
                    order = [lane for i in range(start, start + WIDTH) for lane in (i, i + 2 * WIDTH)]
                    mixed = builder.shuffle_vector(even, odd, ir.Constant(ir.VectorType(WORD, 2 * WIDTH), order))
                    words.append(emit.operand(builder.bitcast(mixed, WORDS), kind))
                return words

            def step(index: Any, sums: list[Any]) -> list[Any]:
                right = operands(index)
                added = []
                for q in range(queries):
                    weight = emit.load(WORD if pairs else FLOAT, emit.address(rows[q], index))
                    left = emit.operand(emit.splat(weight), kind)
                    added += [emit.multiply(left, right[v], sums[2 * q + v], kind) for v in range(2)]
                return added

            steps = builder.ashr(builder.add(count, LONG(1)), LONG(1)) if pairs else count
            for at, total in zip(cells, emit.loop(steps, [emit.load(FLOATS, at) for at in cells], step), strict=True):
                emit.store(total, at)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return f  # type: ignore[no-any-return]


_scores, _scores_pairs = _row_scores("float32"), _row_scores("pairs")
_sums_1, _sums_2, _sums_3, _sums_4 = (_row_sums("float32", queries) for queries in range(1, 5))
_pairs_1, _pairs_2, _pairs_3, _pairs_4 = (_row_sums("pairs", queries) for queries in range(1, 5))
_highest, _weights = highest(1, masked=False), weights(1)


@njit(error_model="numpy")
def _ask(ahead: Any, lines: int, part: int, parts: int) -> None:
    """Asks for one of `parts` equal parts of what is `ahead`, `lines` a key.

    A row's keys are read once, so they come from memory, and the processor foresees no more than a page; but many
    requests at once would hold up the loads.
    """
    keys, values, count, later_keys, later_values, later_count = ahead
    first, total = lines * count, lines * (count + later_count)
    start, end = total * part // parts, total * (part + 1) // parts
    if start < min(end, first):
        prefetch(values + LINE * start, min(end, first) - start)
        prefetch(keys + LINE * start, min(end, first) - start)
    start, end = max(start - first, 0), end - first
    if start < end:
        prefetch(later_values + LINE * start, end - start)
        prefetch(later_keys + LINE * start, end - start)


@njit(error_model="numpy", fastmath=FASTMATH)
def row_block(
    pairs: int,
    queries: int,
    query: int,
    dim: int,
    keys: int,
    values: int,
    count: int,
    factor: Any,
    softcap: Any,
    scratch: Any,
    means: Any,
    best: Any,
    total: Any,
    ahead: Any,
) -> None:
    """`count` keys against `queries` <= 4 queries: means (queries, dim), best and total go on from what they are.

    query: the address of (queries, dim), in the keys' dtype and contiguous. scratch: 4 KEYS + 2 vectors. `ahead`
    is what to bring nearer meanwhile: keys, values and how many, and the same of what comes behind these.
    """
    words = dim // 2 if pairs else dim
    vectors = -(count // -WIDTH)
    at, edge = scratch.ctypes.data, scratch[MAX_QUERIES * KEYS :]
    pivots, sums = edge[:WIDTH], edge[WIDTH : 2 * WIDTH]
    for q in range(queries):
        scores = scratch[q * KEYS : (q + 1) * KEYS]
        into = scores.ctypes.data
        for j in range(0, count, WIDTH):
            key, here = keys + 4 * j * words, min(WIDTH, count - j)
            slot, slots = q * vectors + j // WIDTH, queries * vectors
            _ask(ahead, 4 * words // LINE, slot, slots)
            if pairs:
                _scores_pairs(key, words, here, query + 4 * q * words, words // WIDTH, into + 4 * j)
            else:
                _scores(key, words, here, query + 4 * q * words, words // WIDTH, into + 4 * j)
        scale = factor
        if softcap > np.float32(0):
            cap(scores, count, factor, softcap)
            scale = np.float32(LOG2E)
        for j in range(count, vectors * WIDTH):
            scores[j] = np.float32(LOWEST)
        _highest(into, vectors, pivots.ctypes.data, 0, 0, 0)
        pivot = pivots[0]
        for i in range(1, WIDTH):
            pivot = pivots[i] if pivots[i] > pivot else pivot
        pivot *= scale
        pivot = best[q] if pivot < best[q] else pivot
        pivots[:] = pivot
        _weights(into, vectors, scale, pivots.ctypes.data, sums.ctypes.data)
        correction = exp((best[q] - pivot) * np.float32(LN2))
        best[q] = pivot
        summed = np.float32(0)
        for i in range(WIDTH):
            summed += sums[i]
        total[q] = total[q] * correction + summed
        mean = means[q * dim : (q + 1) * dim]
        for d in range(dim):
            mean[d] *= correction
        if pairs:
            narrow_vectors(into, vectors, into)
    target = means.ctypes.data
    for d in range(0, words, CHUNK // 2 if pairs else CHUNK):
        value, out = values + 4 * d, target + (8 * d if pairs else 4 * d)
        if pairs:
            if queries == 1:
                _pairs_1(at, KEYS, value, words, count, out, dim)
            elif queries == 2:
                _pairs_2(at, KEYS, value, words, count, out, dim)
            elif queries == 3:
                _pairs_3(at, KEYS, value, words, count, out, dim)
            else:
                _pairs_4(at, KEYS, value, words, count, out, dim)
        elif queries == 1:
            _sums_1(at, KEYS, value, words, count, out, dim)
        elif queries == 2:
            _sums_2(at, KEYS, value, words, count, out, dim)
        elif queries == 3:
            _sums_3(at, KEYS, value, words, count, out, dim)
        else:
            _sums_4(at, KEYS, value, words, count, out, dim)
