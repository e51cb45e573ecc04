"""A product of two small matrices held in registers: what attention's scores and sums are made of.

`c[i, :] += sum over k of a[i, k] * b[k, :]`, where the elements of `a` are broadcast and the rows of `b` and `c` are
vectors: an outer product a step, with nothing summed across a vector (Goto & van de Geijn, ACM TOMS 34(3), 2008).
"""

from collections.abc import Callable
from typing import Any

from kernels.cpu.language.jit import intrinsic, types
from kernels.cpu.language.vectors import FLOAT, FLOATS, LONG, WIDTH, WORD, WORDS, Vectors, floats, integers
from kernels.processor import PROCESSOR

# Rows of `c` for 1, 2 and 3 vectors a row, by the registers there are: as many sums as they hold beside a row of `b`,
# and enough to hide their latency. They divide what attention has of keys and, as a rule, of elements. Without fma each
# product takes a register too, and a sum that is put aside waits for memory at every step.
ROWS = {16: {1: 8, 2: 4, 3: 4 if PROCESSOR.fuses else 2}, 32: {1: 16, 2: 8, 3: 8}}[PROCESSOR.registers]

# Outputs of a panel of weights, which all rows pass: so many vectors.
VECTORS = 3
LANES = VECTORS * WIDTH


def product(rows: int, vectors: int, kind: str, *, adds: bool = False) -> Callable[..., None]:
    """For numba: `f(a, a_row, a_step, b, b_step, count, c, c_row, factors)`, for `rows` rows of `vectors` vectors.

    `a`, `b`, `c` and `factors` are addresses; strides and `count` (positive) are in words and steps of `k`. A word of
    `a` and `b` is of one `kind`: "float32", or "pairs" of bfloat16. `adds`: c is first multiplied by the vectors of
    `factors`; else it is overwritten and `factors` is not read.
    """
    assert kind in ("float32", "pairs")

    @intrinsic
    def f(
        _: Any, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, count: Any, c: Any, c_row: Any, factors: Any
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            a, a_row, a_step, b, b_step, count, c, c_row, factors = arguments
            emit = Vectors(builder)
            cells = _cells(emit, c, c_row, rows, vectors)
            starts = [floats(0.0)] * len(cells)
            if adds:
                scales = _vectors(emit, FLOATS, factors, vectors)
                starts = [builder.fmul(emit.load(FLOATS, at), scales[i % vectors]) for i, at in enumerate(cells)]
            sums = _sums(emit, kind, (a, a_row, a_step, b, b_step, count), rows, vectors, starts)
            for at, total in zip(cells, sums, strict=True):
                emit.store(total, at)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return f  # type: ignore[no-any-return]


def byte_product(rows: int, vectors: int, *, adds: bool) -> Callable[..., None]:
    """For numba: `f(a, a_row, b, b_step, count, c, c_row, starts, scales, row_scales)`.

    As `product`, of words of four bytes, unsigned in `a` and signed in `b`. Sums are exact in int32, from the vectors
    of `starts` on, and then multiplied by those of `scales` and by the row's scale. `adds`: c keeps what it has.
    """

    @intrinsic
    def f(
        _: Any,
        a: Any,
        a_row: Any,
        b: Any,
        b_step: Any,
        count: Any,
        c: Any,
        c_row: Any,
        starts: Any,
        scales: Any,
        row_scales: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            a, a_row, b, b_step, count, c, c_row, starts, scales, row_scales = arguments
            emit = Vectors(builder)
            first = _vectors(emit, WORDS, starts, vectors) * rows
            sums = _sums(emit, "bytes", (a, a_row, LONG(1), b, b_step, count), rows, vectors, first)
            columns = _vectors(emit, FLOATS, scales, vectors)
            for index, at in enumerate(_cells(emit, c, c_row, rows, vectors)):
                row, vector = divmod(index, vectors)
                row_scale = emit.load(FLOAT, emit.address(row_scales, LONG(row)))
                factor = builder.fmul(columns[vector], emit.splat(row_scale))
                before = emit.load(FLOATS, at) if adds else floats(0.0)
                emit.store(emit.multiply_add(builder.sitofp(sums[index], FLOATS), factor, before), at)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), generate

    return f  # type: ignore[no-any-return]


def byte_scores(rows: int, vectors: int) -> Callable[..., None]:
    """For numba: `f(a, a_row, b, b_step, count, c, c_row, starts, scales, row_scales, row_terms)`.

    As `byte_product` that adds nothing but a term that the row has.
    """

    @intrinsic
    def f(
        _: Any,
        a: Any,
        a_row: Any,
        b: Any,
        b_step: Any,
        count: Any,
        c: Any,
        c_row: Any,
        starts: Any,
        scales: Any,
        row_scales: Any,
        row_terms: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            a, a_row, b, b_step, count, c, c_row, starts, scales, row_scales, row_terms = arguments
            emit = Vectors(builder)
            first = _vectors(emit, WORDS, starts, vectors) * rows
            sums = _sums(emit, "bytes", (a, a_row, LONG(1), b, b_step, count), rows, vectors, first)
            columns = _vectors(emit, FLOATS, scales, vectors)
            for index, at in enumerate(_cells(emit, c, c_row, rows, vectors)):
                row, vector = divmod(index, vectors)
                scale, term = (
                    emit.splat(emit.load(FLOAT, emit.address(place, LONG(row)))) for place in (row_scales, row_terms)
                )
                factor = builder.fmul(columns[vector], scale)
                emit.store(emit.multiply_add(builder.sitofp(sums[index], FLOATS), factor, term), at)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), generate

    return f  # type: ignore[no-any-return]


def weighted_byte_product(rows: int, vectors: int) -> Callable[..., None]:
    """For numba: `f(a, a_row, a_step, b, b_step, count, c, c_row, factors, scales)`.

    As `product` that adds, of words of four bytes, signed in `a` and unsigned in `b`: sums, exact in int32, are
    multiplied by the vectors of `scales`, and c by those of `factors` before they are added.
    """

    @intrinsic
    def f(
        _: Any,
        a: Any,
        a_row: Any,
        a_step: Any,
        b: Any,
        b_step: Any,
        count: Any,
        c: Any,
        c_row: Any,
        factors: Any,
        scales: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            a, a_row, a_step, b, b_step, count, c, c_row, factors, scales = arguments
            emit = Vectors(builder)
            starts = [integers(0)] * (rows * vectors)
            sums = _sums(emit, "signed bytes", (a, a_row, a_step, b, b_step, count), rows, vectors, starts)
            kept, columns = _vectors(emit, FLOATS, factors, vectors), _vectors(emit, FLOATS, scales, vectors)
            for index, at in enumerate(_cells(emit, c, c_row, rows, vectors)):
                before = builder.fmul(emit.load(FLOATS, at), kept[index % vectors])
                total = builder.sitofp(sums[index], FLOATS)
                emit.store(emit.multiply_add(total, columns[index % vectors], before), at)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), generate

    return f  # type: ignore[no-any-return]


def _cells(emit: Vectors, c: Any, c_row: Any, rows: int, vectors: int) -> list[Any]:
    """Addresses of c's vectors, row by row."""
    return [
        emit.address(c, emit.builder.add(emit.builder.mul(c_row, LONG(row)), LONG(vector * WIDTH)))
        for row in range(rows)
        for vector in range(vectors)
    ]


def _vectors(emit: Vectors, kind: Any, address: Any, count: int) -> list[Any]:
    return [emit.load(kind, emit.address(address, LONG(v * WIDTH))) for v in range(count)]


def _sums(emit: Vectors, kind: str, operands: tuple[Any, ...], rows: int, vectors: int, starts: list[Any]) -> list[Any]:
    """starts + a b, a vector a cell; `operands` are a, a_row, a_step, b, b_step and count."""
    a, a_row, a_step, b, b_step, count = operands
    one, many = (FLOAT, FLOATS) if kind == "float32" else (WORD, WORDS)
    a_rows = [emit.address(a, emit.builder.mul(a_row, LONG(row))) for row in range(rows)]

    def step(_: Any, values: list[Any]) -> list[Any]:
        a_at, b_at, *sums = values
        right = [emit.operand(words, kind) for words in _vectors(emit, many, b_at, vectors)]
        added = []
        for row in range(rows):
            left = emit.operand(emit.splat(emit.load(one, emit.address(a_rows[row], a_at))), kind)
            added += [emit.multiply(left, right[v], sums[row * vectors + v], kind) for v in range(vectors)]
        return [emit.builder.add(a_at, a_step), emit.address(b_at, b_step), *added]

    return emit.loop(count, [LONG(0), b, *starts], step)[2:]
