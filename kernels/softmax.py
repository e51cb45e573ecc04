"""The exponentials of a block of scores whose queries are lanes: each lane has a maximum and a sum of its own."""

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic

from kernels.vectors import FLOATS, LONG, WIDTH, WORD, WORDS, Vectors, floats, integers

# 2**x on [-1/2, 1/2], from the constant on, least relative error: 8e-8, and 8e-5 where bfloat16 follows.
FINE = (1.00000007, 0.69314697, 0.2402212, 0.05550713, 0.00967554, 0.00132765)
COARSE = (0.99992807, 0.69326099, 0.24261112, 0.05517166)
# What no exponent is below: its weight counts for nothing, and no product with it is denormal.
FLOOR = -100.0
# The score of a key that is not read.
LOWEST = -3e38


def highest(vectors: int, *, masked: bool) -> Callable[..., None]:
    """For numba: `f(scores, count, out, first, lower, upper)`: the greatest of `count` rows, lane by lane.

    NaN is passed over. `masked`: row j counts, and keeps its score, only in lanes where `lower <= first + j < upper`
    (rows of int32); elsewhere it is made so low that its weight will be nothing.
    """

    @intrinsic
    def f(_: Any, scores: Any, count: Any, out: Any, first: Any, lower: Any, upper: Any) -> Any:
        def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
            scores, count, out, first, lower, upper = arguments
            emit = Vectors(builder)
            ats = [LONG(v * WIDTH) for v in range(vectors)]
            bounds = [[emit.load(WORDS, emit.address(bound, at)) for at in ats] for bound in (lower, upper) if masked]

            def hide(row: Any, index: Any, values: list[Any]) -> list[Any]:
                key = emit.splat(builder.trunc(builder.add(first, index), WORD))
                for v, (at, low, high) in enumerate(zip(ats, *bounds, strict=True)):
                    seen = builder.and_(builder.icmp_signed(">=", key, low), builder.icmp_signed("<", key, high))
                    values[v] = builder.select(seen, values[v], floats(LOWEST))
                    emit.store(values[v], emit.address(row, at))
                return values

            def step(index: Any, best: list[Any]) -> list[Any]:
                row = emit.address(scores, builder.mul(index, LONG(vectors * WIDTH)))
                loaded = [emit.load(FLOATS, emit.address(row, at)) for at in ats]
                loaded = hide(row, index, loaded) if masked else loaded
                return [emit.greater(value, before) for value, before in zip(loaded, best, strict=True)]

            for at, value in zip(ats, emit.loop(count, [floats(LOWEST)] * vectors, step), strict=True):
                emit.store(value, emit.address(out, at))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return f  # type: ignore[no-any-return]


def weights(vectors: int, *, pairs: bool) -> Callable[..., None]:
    """For numba: `f(scores, count, factor, pivot, sums)`: scores become 2**(score * factor - pivot), in place.

    `factor` is a float32; pivot and sums are a row each, and sums is overwritten. `pairs`: `count` is even, and two
    rows become one of words with a bfloat16 of each (half a unit in the last place is rounded up).
    """

    @intrinsic
    def f(_: Any, scores: Any, count: Any, factor: Any, pivot: Any, sums: Any) -> Any:
        def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
            scores, count, factor, pivot, sums = arguments
            emit = Vectors(builder)
            scale = emit.splat(factor)
            row_words = vectors * WIDTH
            minus = [builder.fneg(emit.load(FLOATS, emit.address(pivot, LONG(v * WIDTH)))) for v in range(vectors)]

            def weigh(row: Any, v: int) -> Any:
                score = emit.load(FLOATS, emit.address(row, LONG(v * WIDTH)))
                return exp2(emit, emit.multiply_add(score, scale, minus[v]), COARSE if pairs else FINE)

            def step(index: Any, totals: list[Any]) -> list[Any]:
                row = emit.address(scores, builder.mul(index, LONG(row_words * (2 if pairs else 1))))
                target = emit.address(scores, builder.mul(index, LONG(row_words)))
                added = []
                for v in range(vectors):
                    made = weigh(row, v)
                    words, total = made, made
                    if pairs:
                        next_row = emit.address(row, LONG(row_words))
                        other = weigh(next_row, v)
                        words, total = _pair(emit, made, other), builder.fadd(made, other)
                    emit.store(words, emit.address(target, LONG(v * WIDTH)))
                    added.append(builder.fadd(totals[v], total))
                return added

            steps = builder.ashr(count, LONG(1)) if pairs else count
            for v, total in enumerate(emit.loop(steps, [floats(0.0)] * vectors, step)):
                emit.store(total, emit.address(sums, LONG(v * WIDTH)))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.float32, types.int64, types.int64), generate

    return f  # type: ignore[no-any-return]


def exp2(emit: Vectors, x: Any, coefficients: tuple[float, ...] = FINE) -> Any:
    """2**x, of vectors: as 2**FLOOR below that; x is at most 127."""
    builder = emit.builder
    x = emit.greater(floats(FLOOR), x)
    power = emit.call(f"llvm.roundeven.v{WIDTH}f32", FLOATS, x)
    rest = builder.fsub(x, power)
    value = floats(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = emit.multiply_add(value, rest, floats(coefficient))
    exponent = builder.shl(builder.fptosi(power, WORDS), integers(23))
    return builder.bitcast(builder.add(builder.bitcast(value, WORDS), exponent), FLOATS)


def _pair(emit: Vectors, low: Any, high: Any) -> Any:
    builder, half = emit.builder, integers(0x8000)
    low = builder.lshr(builder.add(builder.bitcast(low, WORDS), half), integers(16))
    high = builder.and_(builder.add(builder.bitcast(high, WORDS), half), integers(-65536))
    return builder.or_(low, high)
