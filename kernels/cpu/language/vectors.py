"""LLVM's vectors for numba, which has none: the few instructions that attention's inner loops are written in.

All memory is in words of 4 bytes; addresses are 64-bit integers. A word is a float32, or a pair of bfloat16 or four
bytes that are neighbours along the dimension that a product sums over.
"""

from collections.abc import Callable
from typing import Any

from kernels.cpu.language.jit import cgutils, intrinsic, ir, types
from kernels.processor import NATIVE_BFLOAT16, NATIVE_BYTES, PROCESSOR

# Floats in a vector, which is a register.
WIDTH = PROCESSOR.lanes
# Bytes of a cache line.
LINE = 64


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not name."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


BYTE, HALF, WORD, LONG, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS, WORDS = ir.VectorType(FLOAT, WIDTH), ir.VectorType(WORD, WIDTH)
BFLOAT = _BFloat()
# As many integers of 16 bits as a vector of words has halves.
HALVES = ir.VectorType(HALF, 2 * WIDTH)
_PAIRS = ir.VectorType(BFLOAT, 2 * WIDTH)
BYTES = ("bytes", "signed bytes")


def floats(value: float) -> Any:
    return ir.Constant(FLOATS, [value] * WIDTH)


def integers(value: int) -> Any:
    return ir.Constant(WORDS, [value] * WIDTH)


def halves(value: int) -> Any:
    return ir.Constant(HALVES, [value] * 2 * WIDTH)


class Vectors:
    """Emits instructions at the builder's place."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def address(self, base: Any, words: Any) -> Any:
        return self.builder.add(base, self.builder.shl(words, LONG(2)))

    def load(self, kind: Any, address: Any) -> Any:
        return self.builder.load(self.builder.inttoptr(address, ir.PointerType(kind)), align=4)

    def store(self, value: Any, address: Any) -> None:
        self.builder.store(value, self.builder.inttoptr(address, ir.PointerType(value.type)), align=4)

    def splat(self, value: Any) -> Any:
        vector = ir.VectorType(value.type, WIDTH)
        one = self.builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(WORD, 0))
        return self.builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), integers(0))

    def call(self, name: str, result: Any, *operands: Any) -> Any:
        kind = ir.FunctionType(result, [operand.type for operand in operands])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), operands)

    def multiply_add(self, x: Any, y: Any, total: Any) -> Any:
        """x * y + total, rounded once where an instruction does it; a call of C's `fma` would cost as much as ten."""
        if not PROCESSOR.fuses:
            return self.builder.fadd(self.builder.fmul(x, y), total)
        return self.call(f"llvm.fma.v{WIDTH}f32", FLOATS, x, y, total)

    def greater(self, x: Any, y: Any) -> Any:
        """The greater one; `y` where either is NaN."""
        return self.builder.select(self.builder.fcmp_ordered(">", x, y), x, y)

    def operand(self, words: Any, kind: str) -> tuple[Any, ...]:
        """Words as `multiply` takes them: pairs are widened where no instruction multiplies both halves."""
        if kind != "pairs":
            return (words,)
        if NATIVE_BFLOAT16:
            return (self.builder.bitcast(words, _PAIRS),)
        low = self.builder.shl(words, integers(16))
        high = self.builder.and_(words, integers(-65536))
        return self.builder.bitcast(low, FLOATS), self.builder.bitcast(high, FLOATS)

    def multiply(self, left: tuple[Any, ...], right: tuple[Any, ...], total: Any, kind: str) -> Any:
        """total + left * right; of `bytes` the right are signed, of `signed bytes` the left: their total is int32."""
        if kind in BYTES and not NATIVE_BYTES:
            return total  # compiled with the rest, never reached
        if kind in BYTES:
            unsigned, signed = (left, right) if kind == "bytes" else (right, left)
            return self.call("llvm.x86.avx512.vpdpbusd.512", WORDS, total, unsigned[0], signed[0])
        if kind == "pairs" and NATIVE_BFLOAT16:
            return self.call("llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, total, left[0], right[0])
        for x, y in zip(left, right, strict=True):
            total = self.multiply_add(x, y, total)
        return total

    def bfloat16(self, x: Any) -> Any:
        """bfloat16, or their bits, nearest to floats, ties to even; NaN stays NaN, with its sign."""
        if NATIVE_BFLOAT16:
            return self.builder.fptrunc(x, ir.VectorType(BFLOAT, WIDTH))
        builder, sixteen = self.builder, integers(16)
        bits = builder.bitcast(x, WORDS)
        high = builder.lshr(bits, sixteen)
        odd = builder.and_(high, integers(1))
        rounded = builder.lshr(builder.add(bits, builder.add(odd, integers(0x7FFF))), sixteen)
        is_nan = builder.fcmp_unordered("uno", x, x)
        quiet = builder.or_(high, integers(0x40))
        return builder.trunc(builder.select(is_nan, quiet, rounded), ir.VectorType(HALF, WIDTH))

    def loop(self, count: Any, starts: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """`count` times, at least once, `values = body(step, values)` from `starts` on; returns the last values."""
        builder = self.builder
        before, inside, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("done")
        builder.branch(inside)
        builder.position_at_end(inside)
        step = self._phi(LONG(0), before)
        values = [self._phi(start, before) for start in starts]
        results = body(step, values)
        following = builder.add(step, LONG(1))
        for phi, result in zip([step, *values], [following, *results], strict=True):
            phi.add_incoming(result, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
        builder.position_at_end(after)
        return results

    def _phi(self, start: Any, block: Any) -> Any:
        phi = self.builder.phi(start.type)
        phi.add_incoming(start, block)
        return phi


@intrinsic
def interleave(_: Any, low: Any, high: Any, out: Any, vectors: Any) -> Any:
    """For numba: words from bfloat16 at `low` (their lower halves) and at `high`, `vectors` vectors of them."""

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        low, high, out, count = arguments
        emit, halves = Vectors(builder), ir.VectorType(HALF, WIDTH)

        def step(index: Any, _: list[Any]) -> list[Any]:
            at = builder.mul(index, LONG(2 * WIDTH))
            left, right = (
                builder.zext(
                    builder.load(builder.inttoptr(builder.add(base, at), ir.PointerType(halves)), align=2), WORDS
                )
                for base in (low, high)
            )
            word = builder.or_(left, builder.shl(right, integers(16)))
            emit.store(word, builder.add(out, builder.mul(index, LONG(4 * WIDTH))))
            return []

        emit.loop(count, [], step)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@intrinsic
def to_bfloat16(_: Any, values: Any, count: Any, out: Any) -> Any:
    """For numba: `count` vectors of float32 at `values` become bfloat16 at `out`."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        values, count, out = arguments
        emit = Vectors(builder)

        def step(index: Any, _: list[Any]) -> list[Any]:
            wide = emit.load(FLOATS, emit.address(values, builder.mul(index, LONG(WIDTH))))
            emit.store(emit.bfloat16(wide), emit.address(out, builder.mul(index, LONG(WIDTH // 2))))
            return []

        emit.loop(count, [], step)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def from_bfloat16(_: Any, values: Any, count: Any, out: Any) -> Any:
    """For numba: `count` vectors of bfloat16 at `values` become float32 at `out`."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        values, count, out = arguments
        emit, halves = Vectors(builder), ir.PointerType(ir.VectorType(HALF, WIDTH))

        def step(index: Any, _: list[Any]) -> list[Any]:
            at = builder.mul(index, LONG(WIDTH))
            short = builder.load(builder.inttoptr(builder.add(values, builder.shl(at, LONG(1))), halves), align=2)
            emit.store(builder.shl(builder.zext(short, WORDS), integers(16)), emit.address(out, at))
            return []

        emit.loop(count, [], step)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def parted(kind: str) -> Callable[..., None]:
    """For numba: `f(words, rows, vectors, scales, out)`: a row of words becomes rows of float32, one an element.

    All are addresses but `rows` and `vectors`, which are in a row. A word is of "pairs", two rows, or of signed
    "bytes", four, which are multiplied by `scales`, a row.
    """
    per_word = 2 if kind == "pairs" else 4

    @intrinsic
    def f(_: Any, words: Any, rows: Any, vectors: Any, scales: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            words, rows, vectors, scales, out = arguments
            emit, width = Vectors(builder), builder.mul(vectors, LONG(WIDTH))

            def elements(word: Any, at: Any) -> list[Any]:
                if kind == "pairs":
                    return [builder.shl(word, integers(16)), builder.and_(word, integers(-65536))]
                scale, tops = emit.load(FLOATS, emit.address(scales, at)), (24, 16, 8, 0)
                bytes_ = [builder.ashr(builder.shl(word, integers(top)), integers(24)) for top in tops]
                return [builder.fmul(builder.sitofp(byte, FLOATS), scale) for byte in bytes_]

            def row(index: Any, _: list[Any]) -> list[Any]:
                start = builder.mul(index, width)
                source, target = emit.address(words, start), emit.address(out, builder.mul(start, LONG(per_word)))

                def step(place: Any, _: list[Any]) -> list[Any]:
                    at = builder.mul(place, LONG(WIDTH))
                    for number, made in enumerate(elements(emit.load(WORDS, emit.address(source, at)), at)):
                        emit.store(made, emit.address(target, builder.add(at, builder.mul(width, LONG(number)))))
                    return []

                emit.loop(vectors, [], step)
                return []

            emit.loop(rows, [], row)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return f  # type: ignore[no-any-return]


part_pairs, part_bytes = parted("pairs"), parted("bytes")


@intrinsic
def prefetch(_: Any, address: Any, lines: Any) -> Any:
    """For numba: asks for `lines` lines of 64 bytes to be brought into a core's second cache; any address will do."""

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        address, lines = arguments
        byte = ir.PointerType(BYTE)
        kind = ir.FunctionType(ir.VoidType(), [byte, WORD, WORD, WORD])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")

        def step(index: Any, _: list[Any]) -> list[Any]:
            at = builder.add(address, builder.mul(index, LONG(64)))
            builder.call(ask, [builder.inttoptr(at, byte), WORD(0), WORD(2), WORD(1)])
            return []

        Vectors(builder).loop(lines, [], step)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate
