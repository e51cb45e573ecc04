"""The exponentials of a block of scores whose queries are lanes: each lane has a maximum and a sum of its own."""

import math
from collections.abc import Callable
from typing import Any

from kernels.cpu.language.exp2 import FLOOR, exp2
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
    halves,
    integers,
)
from kernels.processor import NATIVE_BYTES

# Steps of a power of two: as many as a bfloat16 has between two powers.
STEPS = 128
# Added to a float32, rounds it to the nearest integer and leaves that in its lower half.
ROUNDING = 1.5 * 2**23
# In steps, 2**f is 1 + f less this share of f (1 - f), nearly, in 65,536ths: what the upper half of a product of 16
# bits is. NEAREST is added to f (1 - f), so that what is cut off is half a step in the mean.
BEND, NEAREST = 176, 144
# The score of a key that is not read, and what no pivot is below.
LOWEST, LEAST = -3e38, -1e30
# 2**x on [0, 1), from the constant on, least relative error: 1.7e-3, less than what rounds a weight in 8 bits.
SHORT_POLYNOMIAL = (1.00172476, 0.65763628, 0.33718943)
# The greatest weight in 8 bits: with half a step, and what a power may be above itself, it is in a byte.
MOST = 254.0
# What a weight is rounded by goes from key to key by this part of a step, the golden ratio's, and so evenly.
DITHER = 0.6180339887498949
# Of an instruction with a mask: no lane is left out, and it rounds as the thread does.
ALL_LANES, AS_SET = HALF(-1), WORD(4)


def highest(vectors: int, *, masked: bool) -> Callable[..., None]:
    """For numba: `f(scores, count, out, first, lower, upper)`: the greatest of `count` rows, lane by lane.

    NaN where one is NaN. `masked`: row j counts, and keeps its score, only in lanes where `lower <= first + j < upper`
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

            def step(index: Any, state: list[Any]) -> list[Any]:
                row = emit.address(scores, builder.mul(index, LONG(vectors * WIDTH)))
                loaded = [emit.load(FLOATS, emit.address(row, at)) for at in ats]
                loaded = hide(row, index, loaded) if masked else loaded
                best, total = state[:vectors], state[vectors:]
                greater = [emit.greater(value, before) for value, before in zip(loaded, best, strict=True)]
                return greater + [builder.fadd(before, value) for value, before in zip(loaded, total, strict=True)]

            state = emit.loop(count, [floats(LOWEST)] * vectors + [floats(0.0)] * vectors, step)
            # The greater one passes NaN over, and a sum keeps it.
            for at, best, total in zip(ats, state[:vectors], state[vectors:], strict=True):
                is_nan = builder.fcmp_unordered("uno", total, total)
                emit.store(builder.select(is_nan, total, best), emit.address(out, at))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return f  # type: ignore[no-any-return]


def rescale(vectors: int, kind: str) -> Callable[..., None]:
    """For numba: `f(pivots, factor, best, upper, corrections, shares)`, between `highest` and the weights of a block.

    All but `factor` are rows' addresses. `pivots` comes with the greatest scores and goes with what weights are over,
    in powers of two. `best` is what sums are over, before and after, and `corrections` what those made so far are
    multiplied by; lanes whose `upper` is 0 keep theirs, and their weights will vanish. `kind` is that of the weights:
    "float32", "pairs", whose pivots are in whole steps, or "bytes", which are over the greatest of their own block, so
    that `shares` is what their sums are multiplied by. NaN stays NaN.
    """
    assert kind in ("float32", "pairs", "bytes")

    @intrinsic
    def f(_: Any, pivots: Any, factor: Any, best: Any, upper: Any, corrections: Any, shares: Any) -> Any:
        def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
            pivots, factor, best, upper, corrections, shares = arguments
            emit = Vectors(builder)
            scale = emit.splat(factor)

            for v in range(vectors):
                at = LONG(v * WIDTH)
                own = builder.fmul(emit.load(FLOATS, emit.address(pivots, at)), scale)
                before = emit.load(FLOATS, emit.address(best, at))
                reads = builder.icmp_signed(">", emit.load(WORDS, emit.address(upper, at)), integers(0))
                if kind == "bytes":
                    is_less = builder.fcmp_ordered("<", own, floats(LEAST))
                    own = builder.select(is_less, floats(LEAST), own)
                after = builder.select(builder.fcmp_ordered("<", own, before), before, own)
                if kind == "pairs":
                    steps = emit.call(f"llvm.floor.v{WIDTH}f32", FLOATS, builder.fmul(after, floats(STEPS)))
                    after = builder.fmul(steps, floats(1 / STEPS))
                correction = builder.select(reads, exp2(emit, builder.fsub(before, after)), floats(1.0))
                emit.store(correction, emit.address(corrections, at))
                emit.store(builder.select(reads, after, before), emit.address(best, at))
                if kind == "bytes":
                    share = exp2(emit, builder.fsub(builder.fsub(own, after), floats(math.log2(MOST))))
                    emit.store(builder.select(reads, share, floats(0.0)), emit.address(shares, at))
                    emit.store(own, emit.address(pivots, at))
                else:
                    emit.store(builder.select(reads, after, floats(-LOWEST)), emit.address(pivots, at))
            return context.get_dummy_value()

        return types.void(types.int64, types.float32, *[types.int64] * 4), generate

    return f  # type: ignore[no-any-return]


def weights(vectors: int) -> Callable[..., None]:
    """For numba: `f(scores, count, factor, pivot, sums)`: scores become 2**(score * factor - pivot), in place.

    `factor` is a float32; pivot and sums are a row each, and sums is overwritten.
    """

    @intrinsic
    def f(_: Any, scores: Any, count: Any, factor: Any, pivot: Any, sums: Any) -> Any:
        def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
            scores, count, factor, pivot, sums = arguments
            emit = Vectors(builder)
            scale = emit.splat(factor)
            ats = [LONG(v * WIDTH) for v in range(vectors)]
            minus = [builder.fneg(emit.load(FLOATS, emit.address(pivot, at))) for at in ats]

            def step(index: Any, totals: list[Any]) -> list[Any]:
                row = emit.address(scores, builder.mul(index, LONG(vectors * WIDTH)))
                added = []
                for at, less, total in zip(ats, minus, totals, strict=True):
                    place = emit.address(row, at)
                    weight = exp2(emit, emit.multiply_add(emit.load(FLOATS, place), scale, less))
                    emit.store(weight, place)
                    added.append(builder.fadd(total, weight))
                return added

            for at, total in zip(ats, emit.loop(count, [floats(0.0)] * vectors, step), strict=True):
                emit.store(total, emit.address(sums, at))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.float32, types.int64, types.int64), generate

    return f  # type: ignore[no-any-return]


def paired_weights(vectors: int) -> Callable[..., None]:
    """As `weights`, but two rows become one of words with a bfloat16 of each: `count` is even.

    `pivot` is in whole steps (`STEPS`), a weight is off by 0.9 % at most and 0.3 % as a rule (rounding to bfloat16
    alone: 0.4 and 0.2 %), and the sums are of the weights as they are written. A score that is NaN weighs
    nothing.
    """

    @intrinsic
    def f(_: Any, scores: Any, count: Any, factor: Any, pivot: Any, sums: Any) -> Any:
        def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
            scores, count, factor, pivot, sums = arguments
            emit = Vectors(builder)
            ats = [LONG(v * WIDTH) for v in range(vectors)]
            scale = builder.fmul(emit.splat(factor), floats(STEPS))
            # In its 16 bits, an integer of so many steps is the bfloat16 whose power they count, but for the bend.
            one, least = ROUNDING + 127 * STEPS, floats(ROUNDING + (127 + FLOOR) * STEPS)
            pivots = [emit.load(FLOATS, emit.address(pivot, at)) for at in ats]
            starts = [emit.multiply_add(x, floats(-STEPS), floats(one)) for x in pivots]
            ones = emit.operand(integers(0x3F803F80), "pairs")

            def steps_of(row: Any, v: int) -> Any:
                score = emit.load(FLOATS, emit.address(row, ats[v]))
                return builder.bitcast(emit.greater(emit.multiply_add(score, scale, starts[v]), least), WORDS)

            def step(index: Any, totals: list[Any]) -> list[Any]:
                row = emit.address(scores, builder.mul(index, LONG(2 * vectors * WIDTH)))
                next_row = emit.address(row, LONG(vectors * WIDTH))
                target = emit.address(scores, builder.mul(index, LONG(vectors * WIDTH)))
                added = []
                for v, total in enumerate(totals):
                    low = builder.and_(steps_of(row, v), integers(0xFFFF))
                    words = builder.or_(low, builder.shl(steps_of(next_row, v), integers(16)))
                    words = _bent(emit, words)
                    emit.store(words, emit.address(target, ats[v]))
                    added.append(emit.multiply(emit.operand(words, "pairs"), ones, total, "pairs"))
                return added

            totals = emit.loop(builder.ashr(count, LONG(1)), [floats(0.0)] * vectors, step)
            for at, total in zip(ats, totals, strict=True):
                emit.store(total, emit.address(sums, at))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.float32, types.int64, types.int64), generate

    return f  # type: ignore[no-any-return]


def byte_weights(vectors: int) -> Callable[..., None]:
    """As `weights`, but four rows become one of words with a byte of each: `count` is a multiple of 4.

    `f(scores, count, factor, pivot, shares, inverses, dithers, sums)`: bytes are 2**(score * factor - pivot) * `MOST`
    and a key's of `dithers`, of which there are `count`, to the nearest; no score is above the pivot. So of many with
    one weight as many are rounded up as make their sum right: small ones count for what they are together. `sums` are
    of the weights before they are rounded, times the keys' `inverses` and the lane's `shares`.
    """

    @intrinsic
    def f(
        _: Any,
        scores: Any,
        count: Any,
        factor: Any,
        pivot: Any,
        shares: Any,
        inverses: Any,
        dithers: Any,
        sums: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
            if not NATIVE_BYTES:
                return context.get_dummy_value()  # compiled with the rest, never reached
            scores, count, factor, pivot, shares, inverses, dithers, sums = arguments
            emit = Vectors(builder)
            scale = emit.splat(factor)
            ats = [LONG(v * WIDTH) for v in range(vectors)]
            pivots = [emit.load(FLOATS, emit.address(pivot, at)) for at in ats]
            starts = [builder.fsub(floats(math.log2(MOST)), x) for x in pivots]

            def step(index: Any, totals: list[Any]) -> list[Any]:
                row = emit.address(scores, builder.mul(index, LONG(4 * vectors * WIDTH)))
                target = emit.address(scores, builder.mul(index, LONG(vectors * WIDTH)))
                first = builder.shl(index, LONG(2))
                made: list[list[Any]] = [[] for _ in ats]
                totals = [*totals]
                for key in range(4):
                    at = builder.add(first, LONG(key))
                    inverse, dither = (
                        emit.splat(emit.load(FLOAT, emit.address(place, at))) for place in (inverses, dithers)
                    )
                    for v, start in enumerate(starts):
                        score = emit.load(FLOATS, emit.address(row, LONG((key * vectors + v) * WIDTH)))
                        weight = _power(emit, emit.multiply_add(score, scale, start))
                        totals[v] = emit.multiply_add(weight, inverse, totals[v])
                        made[v].append(_nearest(emit, builder.fadd(weight, dither)))
                for at, words in zip(ats, made, strict=True):
                    emit.store(_bytes_of(emit, words), emit.address(target, at))
                return totals

            totals = emit.loop(builder.ashr(count, LONG(2)), [floats(0.0)] * vectors, step)
            for at, total in zip(ats, totals, strict=True):
                share = emit.load(FLOATS, emit.address(shares, at))
                emit.store(builder.fmul(total, share), emit.address(sums, at))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.float32, *[types.int64] * 5), generate

    return f  # type: ignore[no-any-return]


def _power(emit: Vectors, x: Any) -> Any:
    """2**x, of vectors, to a 580th; 0 far below, and NaN of NaN."""
    rest = emit.call("llvm.x86.avx512.mask.reduce.ps.512", FLOATS, x, WORD(1), x, ALL_LANES, AS_SET)
    value = floats(SHORT_POLYNOMIAL[-1])
    for coefficient in SHORT_POLYNOMIAL[-2::-1]:
        value = emit.multiply_add(value, rest, floats(coefficient))
    return emit.call("llvm.x86.avx512.mask.scalef.ps.512", FLOATS, value, x, value, ALL_LANES, AS_SET)


def _nearest(emit: Vectors, x: Any) -> Any:
    """To integers, ties to even; what is not finite to the least."""
    return emit.call("llvm.x86.avx512.mask.cvtps2dq.512", WORDS, x, integers(0), ALL_LANES, AS_SET)


def _bytes_of(emit: Vectors, words: list[Any]) -> Any:
    """Of four vectors of integers one, whose words have a byte of each, clamped to [0, 255]."""
    builder, bytes_ = emit.builder, ir.VectorType(BYTE, 4 * WIDTH)
    low, high = (emit.call("llvm.x86.avx512.packusdw.512", HALVES, *words[i : i + 2]) for i in (0, 2))
    packed = emit.call("llvm.x86.avx512.packuswb.512", bytes_, low, high)
    # In quarters, four lanes of each vector in turn.
    order = [16 * quarter + 4 * i + lane for quarter in range(4) for lane in range(4) for i in range(4)]
    places = ir.Constant(ir.VectorType(WORD, 4 * WIDTH), order)
    return builder.bitcast(builder.shuffle_vector(packed, ir.Constant(bytes_, ir.Undefined), places), WORDS)


def _bent(emit: Vectors, words: Any) -> Any:
    """Each half of the words, a straight line between powers of two, less what the power is below it."""
    builder, wide = emit.builder, ir.VectorType(WORD, 2 * WIDTH)
    steps = builder.bitcast(words, HALVES)
    rest = builder.and_(steps, halves(STEPS - 1))
    product = builder.add(builder.mul(rest, builder.sub(halves(STEPS), rest)), halves(NEAREST))
    upper = builder.mul(builder.zext(product, wide), ir.Constant(wide, [BEND] * 2 * WIDTH))
    bend = builder.trunc(builder.lshr(upper, ir.Constant(wide, [16] * 2 * WIDTH)), HALVES)
    return builder.bitcast(builder.sub(steps, bend), WORDS)
