"""A product of two small matrices held in registers: what attention's scores and sums are made of.

`c[i, :] += sum over k of a[i, k] * b[k, :]`, where the elements of `a` are broadcast and the rows of `b` and `c` are
vectors: an outer product a step, with nothing summed across a vector (Goto & van de Geijn, ACM TOMS 34(3), 2008).
"""

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic

from kernels.vectors import FLOAT, FLOATS, LONG, WIDE_REGISTERS, WIDTH, WORD, WORDS, Vectors, floats, integers

# Rows of `c` for 1, 2 and 3 vectors a row: as many sums as there are registers for, and enough to hide their latency.
ROWS = {1: 16, 2: 8, 3: 8} if WIDE_REGISTERS else {1: 4, 2: 2, 3: 1}


def product(rows: int, vectors: int, kind: str, *, adds: bool = False) -> Callable[..., None]:
    """For numba: `f(a, a_row, a_step, b, b_step, count, c, c_row, factors)`, for `rows` rows of `vectors` vectors.

    `a`, `b`, `c` and `factors` are addresses; strides and `count` (positive) are in words and steps of `k`. A word of
    `a` and `b` is of one `kind`: "float32", "pairs" of bfloat16, or four "bytes" (c is int32 then). `adds`: c is first
    multiplied by the vectors of `factors`; else it is overwritten and `factors` is not read.
    """
    assert kind in ("float32", "pairs", "bytes")
    assert kind != "bytes" or not adds

    @intrinsic
    def f(
        _: Any, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, count: Any, c: Any, c_row: Any, factors: Any
    ) -> Any:
        return types.void(*[types.int64] * 9), _generate(rows, vectors, kind, adds)

    return f  # type: ignore[no-any-return]


def _generate(rows: int, vectors: int, kind: str, adds: bool) -> Callable[..., Any]:
    one, many = (FLOAT, FLOATS) if kind == "float32" else (WORD, WORDS)

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        a, a_row, a_step, b, b_step, count, c, c_row, factors = arguments
        emit = Vectors(builder)
        a_rows = [emit.address(a, builder.mul(a_row, LONG(row))) for row in range(rows)]
        cells = [
            emit.address(c, builder.add(builder.mul(c_row, LONG(row)), LONG(vector * WIDTH)))
            for row in range(rows)
            for vector in range(vectors)
        ]
        starts = [integers(0) if kind == "bytes" else floats(0.0)] * len(cells)
        if adds:
            scales = [emit.load(FLOATS, emit.address(factors, LONG(v * WIDTH))) for v in range(vectors)]
            starts = [builder.fmul(emit.load(FLOATS, at), scales[i % vectors]) for i, at in enumerate(cells)]

        def step(_: Any, values: list[Any]) -> list[Any]:
            a_at, b_at, *sums = values
            loaded = [emit.load(many, emit.address(b_at, LONG(v * WIDTH))) for v in range(vectors)]
            right = [emit.operand(words, kind) for words in loaded]
            added = []
            for row in range(rows):
                left = emit.operand(emit.splat(emit.load(one, emit.address(a_rows[row], a_at))), kind)
                added += [emit.multiply(left, right[v], sums[row * vectors + v], kind) for v in range(vectors)]
            return [builder.add(a_at, a_step), emit.address(b_at, b_step), *added]

        _, _, *sums = emit.loop(count, [LONG(0), b, *starts], step)
        for at, total in zip(cells, sums, strict=True):
            emit.store(total, at)
        return context.get_dummy_value()

    return generate
