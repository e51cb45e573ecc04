"""The fast Walsh-Hadamard transform of a row's blocks, in registers: what rows go through before `int8_rows`."""

from collections.abc import Callable
from typing import Any

from kernels.cpu.language.jit import intrinsic, ir, njit, types
from kernels.cpu.language.vectors import BYTE, FLOAT, FLOATS, LONG, WIDTH, WORD, WORDS, Vectors, floats, integers

# Neighbours of a block, at least and at most: blocks are the same on every processor.
MIN_BLOCK, MAX_BLOCK = 16, 256
_BYTES = ir.VectorType(BYTE, WIDTH)


def _transform(vectors: int) -> Callable[..., None]:
    """For numba: `f(values, factors, out, blocks, magnitudes, squares)`, for blocks of so many vectors.

    All are addresses but `blocks`. out = values * factors, each block times the Hadamard matrix of its size, unscaled;
    magnitudes: the bits of the largest magnitudes in it, and squares: the sums of the values' squares, lane by lane.
    """

    @intrinsic
    def f(_: Any, values: Any, factors: Any, out: Any, blocks: Any, magnitudes: Any, squares: Any) -> Any:
        def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
            values, factors, out, blocks, magnitudes, squares = arguments
            emit = Vectors(builder)

            def step(index: Any, state: list[Any]) -> list[Any]:
                most, total = state
                ats = [builder.add(builder.mul(index, LONG(vectors * WIDTH)), LONG(v * WIDTH)) for v in range(vectors)]
                given = [emit.load(FLOATS, emit.address(values, at)) for at in ats]
                for x in given:
                    total = emit.multiply_add(x, x, total)
                taken = [
                    builder.fmul(x, emit.load(FLOATS, emit.address(factors, at)))
                    for x, at in zip(given, ats, strict=True)
                ]
                for at, x in zip(ats, _across(emit, [_lanes(emit, x) for x in taken]), strict=True):
                    emit.store(x, emit.address(out, at))
                    # Magnitudes compare as their bits do, and what is not finite is above all that is.
                    bits = builder.and_(builder.bitcast(x, WORDS), integers(0x7FFFFFFF))
                    most = builder.select(builder.icmp_signed(">", bits, most), bits, most)
                return [most, total]

            most, total = emit.loop(blocks, [integers(0), floats(0.0)], step)
            emit.store(most, magnitudes)
            emit.store(total, squares)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return f  # type: ignore[no-any-return]


def _lanes(emit: Vectors, x: Any) -> Any:
    """x times the Hadamard matrix of a vector's lanes."""
    distance = 1
    while distance < WIDTH:
        # Of two lanes `distance` apart the lower becomes the sum, the upper the difference.
        partners = ir.Constant(WORDS, [lane ^ distance for lane in range(WIDTH)])
        signs = ir.Constant(FLOATS, [FLOAT(-1.0 if lane & distance else 1.0) for lane in range(WIDTH)])
        x = emit.multiply_add(x, signs, emit.builder.shuffle_vector(x, x, partners))
        distance *= 2
    return x


def _across(emit: Vectors, xs: list[Any]) -> list[Any]:
    """The rest of the transform, lane by lane."""
    distance = 1
    while distance < len(xs):
        xs = [
            emit.builder.fsub(xs[i ^ distance], x) if i & distance else emit.builder.fadd(x, xs[i ^ distance])
            for i, x in enumerate(xs)
        ]
        distance *= 2
    return xs


_blocks_of_16, _blocks_of_32, _blocks_of_64 = (_transform(block // WIDTH) for block in (16, 32, 64))
_blocks_of_128, _blocks_of_256 = (_transform(block // WIDTH) for block in (128, 256))


@njit(error_model="numpy")
def hadamard_blocks(
    block: int, values: int, factors: int, out: int, blocks: int, magnitudes: int, squares: int
) -> None:
    """Does what `_transform` makes, for blocks of 16, 32, 64, 128 or 256 neighbours."""
    if block == 256:
        _blocks_of_256(values, factors, out, blocks, magnitudes, squares)
    elif block == 128:
        _blocks_of_128(values, factors, out, blocks, magnitudes, squares)
    elif block == 64:
        _blocks_of_64(values, factors, out, blocks, magnitudes, squares)
    elif block == 32:
        _blocks_of_32(values, factors, out, blocks, magnitudes, squares)
    else:
        _blocks_of_16(values, factors, out, blocks, magnitudes, squares)


@intrinsic
def to_bytes(_: Any, values: Any, step: Any, out: Any, vectors: Any, zero: Any) -> Any:
    """For numba: out, in bytes, = zero + values * step to the nearest, ties to even, which is within a byte."""

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        values, step_, out, count, zero = arguments
        emit = Vectors(builder)
        steps, zeros = emit.splat(step_), emit.splat(builder.trunc(zero, WORD))

        def step(index: Any, _: list[Any]) -> list[Any]:
            at = builder.mul(index, LONG(WIDTH))
            scaled = builder.fmul(emit.load(FLOATS, emit.address(values, at)), steps)
            nearest = builder.fptosi(emit.call(f"llvm.roundeven.v{WIDTH}f32", FLOATS, scaled), WORDS)
            made = builder.trunc(builder.add(nearest, zeros), _BYTES)
            builder.store(made, builder.inttoptr(builder.add(out, at), ir.PointerType(_BYTES)), align=1)
            return []

        emit.loop(count, [], step)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, *[types.int64] * 3), generate
