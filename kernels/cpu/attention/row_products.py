"""Products of few queries with one row's keys and values, whose elements are lanes of vectors."""

from collections.abc import Callable
from typing import Any

from kernels.cpu.attention.byte_kv import zipped
from kernels.cpu.language.jit import intrinsic, ir, types
from kernels.cpu.language.vectors import (
    BYTE,
    FLOAT,
    FLOATS,
    HALF,
    HALVES,
    LONG,
    WIDTH,
    WORD,
    WORDS,
    Vectors,
    floats,
    integers,
)
from kernels.processor import NATIVE_BYTES

# Elements of a row that are read at once, but for bytes; `dim` is a multiple.
CHUNK = 2 * WIDTH
# What a weight of 1 is in 16 bits.
WEIGHT = 2**15 - 1


def row_scores(kind: str) -> Callable[..., None]:
    """For numba: `f(keys, key_words, count, query, steps, out)`: one query's scores of `count` keys, a vector at most.

    `key_words` is the stride of keys and `steps` the vectors of words in one. What is behind `count` is unspecified.
    Of bytes, unsigned in keys and signed in the query, the scores are int32.
    """

    @intrinsic
    def f(_: Any, keys: Any, key_words: Any, count: Any, query: Any, steps: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            keys, key_words, count, query, steps, out = arguments
            emit, many = Vectors(builder), FLOATS if kind == "float32" else WORDS
            zero, add = (integers(0), builder.add) if kind == "bytes" else (floats(0.0), builder.fadd)
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

            sums = emit.loop(steps, [zero] * WIDTH, step)
            # Neighbours are added until each vector is a lane of one: half as many vectors, half as many lanes a key.
            while len(sums) > 1:
                sums = [
                    add(_every_second(builder, left, right, 0), _every_second(builder, left, right, 1))
                    for left, right in zip(sums[::2], sums[1::2], strict=True)
                ]
            emit.store(sums[0], out)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return f  # type: ignore[no-any-return]


def _every_second(builder: Any, left: Any, right: Any, first: int) -> Any:
    return builder.shuffle_vector(left, right, ir.Constant(WORDS, [*range(first, 2 * WIDTH, 2)]))


def row_sums(kind: str, queries: int) -> Callable[..., None]:
    """For numba: `f(weights, weight_words, values, value_words, count, out, out_words)`, `CHUNK` elements a value.

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
                    interleaved = builder.shuffle_vector(even, odd, ir.Constant(ir.VectorType(WORD, 2 * WIDTH), order))
                    words.append(emit.operand(builder.bitcast(interleaved, WORDS), kind))
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


def row_byte_sums(queries: int) -> Callable[..., None]:
    """For numba: `f(weights, weight_words, values, value_bytes, count, out, out_words)`, for 64 elements of values.

    out (queries, ...) += weights (queries, count) @ values (count, ...), of signed bytes. A word of weights is two
    keys' in 16 bits, of which the one behind an odd `count` is zero; sums over 128 keys are exact.
    """

    @intrinsic
    def f(
        _: Any, weights: Any, weight_words: Any, values: Any, value_bytes: Any, count: Any, out: Any, out_words: Any
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            if not NATIVE_BYTES:
                return context.get_dummy_value()  # compiled with the rest, never reached
            weights, weight_words, values, value_bytes, count, out, out_words = arguments
            emit, bytes_ = Vectors(builder), ir.VectorType(BYTE, 4 * WIDTH)
            rows = [emit.address(weights, builder.mul(weight_words, LONG(q))) for q in range(queries)]
            last = builder.sub(count, LONG(1))

            def widened(part: Any, half: int) -> Any:
                order = ir.Constant(ir.VectorType(WORD, 2 * WIDTH), [*range(2 * WIDTH * half, 2 * WIDTH * (half + 1))])
                taken = builder.shuffle_vector(part, ir.Constant(bytes_, ir.Undefined), order)
                return builder.bitcast(builder.sext(taken, HALVES), WORDS)

            def step(index: Any, sums: list[Any]) -> list[Any]:
                first = builder.shl(index, LONG(1))
                second = builder.add(first, LONG(1))
                second = builder.select(builder.icmp_signed("<", second, last), second, last)
                even, odd = (
                    emit.load(bytes_, builder.add(values, builder.mul(key, value_bytes))) for key in (first, second)
                )
                right = [widened(part, half) for part in zipped(emit, even, odd, kind=BYTE) for half in range(2)]
                added = []
                for q in range(queries):
                    left = emit.splat(emit.load(WORD, emit.address(rows[q], index)))
                    for v, words in enumerate(right):
                        added.append(emit.call("llvm.x86.avx512.vpdpwssd.512", WORDS, sums[4 * q + v], words, left))
                return added

            steps = builder.ashr(builder.add(count, LONG(1)), LONG(1))
            sums = emit.loop(steps, [integers(0)] * (4 * queries), step)
            for q in range(queries):
                for v in range(4):
                    at = emit.address(out, builder.add(builder.mul(out_words, LONG(q)), LONG(v * WIDTH)))
                    total = builder.sitofp(sums[4 * q + v], FLOATS)
                    emit.store(emit.multiply_add(total, floats(1 / WEIGHT), emit.load(FLOATS, at)), at)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return f  # type: ignore[no-any-return]


@intrinsic
def finish_scores(_: Any, scores: Any, vectors: Any, offset: Any, scale: Any, key_scales: Any, terms: Any) -> Any:
    """For numba: scores in int32 become float32, in place: (score + offset) * scale * the key's + its term."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        scores, vectors, offset, scale, key_scales, terms = arguments
        emit = Vectors(builder)
        offsets, scales = emit.splat(builder.trunc(offset, WORD)), emit.splat(scale)

        def step(index: Any, _: list[Any]) -> list[Any]:
            at = builder.mul(index, LONG(WIDTH))
            place = emit.address(scores, at)
            score = builder.sitofp(builder.add(emit.load(WORDS, place), offsets), FLOATS)
            factor = builder.fmul(emit.load(FLOATS, emit.address(key_scales, at)), scales)
            emit.store(emit.multiply_add(score, factor, emit.load(FLOATS, emit.address(terms, at))), place)
            return []

        emit.loop(vectors, [], step)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float32, types.int64, types.int64), generate


@intrinsic
def to_int16(_: Any, weights: Any, vectors: Any, inverses: Any, sums: Any) -> Any:
    """For numba: weights of at most 1 become integers of 16 bits, `WEIGHT` for 1, in place.

    sums, a vector: of the weights as they were, times `inverses`.
    """

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        weights, vectors, inverses, sums = arguments
        emit = Vectors(builder)

        def step(index: Any, total: list[Any]) -> list[Any]:
            at = builder.mul(index, LONG(WIDTH))
            weight = emit.load(FLOATS, emit.address(weights, at))
            whole = builder.fptosi(emit.multiply_add(weight, floats(WEIGHT), floats(0.5)), WORDS)
            short = builder.trunc(whole, ir.VectorType(HALF, WIDTH))
            emit.store(short, emit.address(weights, builder.mul(index, LONG(WIDTH // 2))))
            return [emit.multiply_add(weight, emit.load(FLOATS, emit.address(inverses, at)), total[0])]

        (total,) = emit.loop(vectors, [floats(0.0)], step)
        emit.store(total, sums)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate
