"""Queries, keys and values in 8 bits: attention is then half the work (SageAttention, arXiv 2410.02367).

The weights, in 8 bits too, are `kernels.softmax.byte_weights`.
"""

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from kernels.openmp import int8_at, int32_at
from kernels.softmax import ROUNDING
from kernels.transpose import transpose
from kernels.vectors import (
    FLOAT,
    FLOATS,
    HALVES,
    LONG,
    NATIVE_BYTES,
    WIDTH,
    WORD,
    WORDS,
    Vectors,
    floats,
    halves,
    integers,
)

# Elements that one vector of bytes is made of; `dim` is a multiple.
CHUNK = 4 * WIDTH


def takes(dim: int) -> bool:
    """Whether this processor multiplies bytes, and `dim` elements are whole vectors of them."""
    return NATIVE_BYTES and dim % CHUNK == 0


@intrinsic
def _quantize(_: Any, source: Any, chunks: Any, out: Any, scale: Any) -> Any:
    """For numba: a row of bfloat16 to bytes of which 128 is zero, times the float32 at `scale`: all addresses.

    Elements change places, those of each `CHUNK` alike in every row. A row that is not finite has a scale that is not.
    """

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        source, chunks, out, scale = arguments
        emit = Vectors(builder)

        def at(index: Any, part: int) -> Any:
            return emit.address(source, builder.add(builder.mul(index, LONG(2 * WIDTH)), LONG(part * WIDTH)))

        def magnitudes(index: Any, most: list[Any]) -> list[Any]:
            for part in range(2):
                bits = builder.and_(emit.load(HALVES, at(index, part)), halves(0x7FFF))
                most = [builder.select(builder.icmp_unsigned(">", bits, most[0]), bits, most[0])]
            return most

        (most,) = emit.loop(chunks, [halves(0)], magnitudes)
        bits = emit.call(f"llvm.vector.reduce.umax.v{2 * WIDTH}i16", ir.IntType(16), most)
        largest = builder.bitcast(builder.shl(builder.zext(bits, WORD), WORD(16)), FLOAT)
        builder.store(builder.fmul(largest, FLOAT(1 / 127)), builder.inttoptr(scale, ir.PointerType(FLOAT)), align=4)
        is_some = builder.fcmp_ordered(">", largest, FLOAT(1e-36))
        step = emit.splat(builder.fdiv(FLOAT(127.0), builder.select(is_some, largest, FLOAT(1e-36))))

        def convert(index: Any, _: list[Any]) -> list[Any]:
            made = integers(0)
            for part in range(2):
                words = emit.load(WORDS, at(index, part))
                for half in range(2):
                    value = builder.and_(words, integers(-65536)) if half else builder.shl(words, integers(16))
                    value = emit.multiply_add(builder.bitcast(value, FLOATS), step, floats(ROUNDING + 128))
                    byte = builder.and_(builder.bitcast(value, WORDS), integers(255))
                    made = builder.or_(made, builder.shl(byte, integers(8 * (2 * part + half))))
            emit.store(made, emit.address(out, builder.mul(index, LONG(WIDTH))))
            return []

        emit.loop(chunks, [], convert)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@njit(error_model="numpy")
def quantize_keys(keys: int, count: int, dim: int, out: int, scales: int) -> None:
    """keys (count, dim) in bfloat16 to bytes of which 128 is zero and a float32 scale each; all are addresses."""
    for key in range(count):
        _quantize(keys + 2 * key * dim, dim // CHUNK, out + key * dim, scales + 4 * key)


@njit(error_model="numpy")
def quantize_queries(
    queries: int, count: int, dim: int, stride: int, room: int, out: int, scales: int, offsets: int
) -> None:
    """queries (count, dim) in bfloat16 to signed bytes, four of one query a word: out (dim / 4, stride).

    scales (count,) in float32, and offsets (count,) in int32: what the keys' zero adds to a product, negated. `room`
    holds count by dim bytes; `count` is in whole vectors.
    """
    sums, words = int32_at(offsets, count), dim // 4
    quantize_keys(queries, count, dim, room, scales)
    for query in range(count):
        signed, total = int8_at(room + query * dim, dim), 0
        for d in range(dim):
            signed[d] ^= -128
            total += signed[d]
        sums[query] = -128 * total
    transpose(room, words, count, words, out, stride)


@intrinsic
def _quantize_values(_: Any, values: Any, count: Any, dim: Any, out: Any, scales: Any) -> Any:
    """For numba: see `quantize_values`."""

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        values, count, dim, out, scales = arguments
        emit, narrow, last = Vectors(builder), ir.VectorType(ir.IntType(16), WIDTH), builder.sub(count, LONG(1))

        def widened(bits: Any) -> Any:
            return builder.bitcast(builder.shl(builder.zext(bits, WORDS), integers(16)), FLOATS)

        def chunk(index: Any, _: list[Any]) -> list[Any]:
            first = builder.mul(index, LONG(2 * WIDTH))

            def place(key: Any, element: int) -> Any:
                at = builder.add(builder.mul(key, dim), builder.add(first, LONG(element)))
                return builder.add(values, builder.shl(at, LONG(1)))

            def magnitudes(key: Any, most: list[Any]) -> list[Any]:
                bits = builder.and_(emit.load(HALVES, place(key, 0)), halves(0x7FFF))
                return [builder.select(builder.icmp_unsigned(">", bits, most[0]), bits, most[0])]

            (most,) = emit.loop(count, [halves(0)], magnitudes)
            steps = []
            for element in (0, WIDTH):
                order = ir.Constant(WORDS, [*range(element, element + WIDTH)])
                largest = widened(builder.shuffle_vector(most, ir.Constant(HALVES, ir.Undefined), order))
                place_of_scale = emit.address(scales, builder.add(first, LONG(element)))
                emit.store(builder.fmul(largest, floats(1 / 127)), place_of_scale)
                some = builder.select(builder.fcmp_ordered(">", largest, floats(1e-36)), largest, floats(1e-36))
                steps.append(builder.fdiv(floats(127.0), some))

            def convert(quad: Any, _: list[Any]) -> list[Any]:
                for element, step in zip((0, WIDTH), steps, strict=True):
                    made = integers(0)
                    for part in range(4):
                        key = builder.add(builder.shl(quad, LONG(2)), LONG(part))
                        key = builder.select(builder.icmp_signed("<", key, last), key, last)
                        pointer = builder.inttoptr(place(key, element), ir.PointerType(narrow))
                        value = emit.multiply_add(widened(builder.load(pointer, align=2)), step, floats(ROUNDING))
                        byte = builder.and_(builder.bitcast(value, WORDS), integers(255))
                        made = builder.or_(made, builder.shl(byte, integers(8 * part)))
                    at = builder.add(builder.mul(quad, dim), builder.add(first, LONG(element)))
                    emit.store(made, emit.address(out, at))
                return []

            emit.loop(builder.ashr(builder.add(count, LONG(3)), LONG(2)), [], convert)
            return []

        emit.loop(builder.ashr(dim, LONG(5)), [], chunk)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@njit(error_model="numpy")
def quantize_values(values: int, count: int, dim: int, out: int, scales: int) -> None:
    """values (count, dim) in bfloat16 to signed bytes, four keys' of one element a word: out (count / 4, dim).

    scales (dim,) in float32, an element's largest magnitude over 127. All are addresses.
    """
    _quantize_values(values, count, dim, out, scales)
