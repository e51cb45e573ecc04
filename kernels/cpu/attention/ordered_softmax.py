"""The exponentials of scores whose greatest is known: their sum goes on key by key, wherever the keys are cut."""

from collections.abc import Callable
from typing import Any

from kernels.cpu.language.exp2 import FLOOR, exp2
from kernels.cpu.language.jit import intrinsic, types
from kernels.cpu.language.vectors import FLOATS, LONG, WIDTH, Vectors, floats


def ordered_weights(vectors: int) -> Callable[..., None]:
    """For numba: `f(scores, count, factor, pivots, totals)`: scores become 2**(score * factor - pivot), in place.

    `count` rows of so many vectors. `totals`, a row, go on from what they are, a key at a time. What is below 2**FLOOR
    is 0, so that a key that a lane does not read leaves its sums as they are, to the last bit.
    """

    @intrinsic
    def f(_: Any, scores: Any, count: Any, factor: Any, pivots: Any, totals: Any) -> Any:
        def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
            scores, count, factor, pivots, totals = arguments
            emit = Vectors(builder)
            scale = emit.splat(factor)
            ats = [LONG(v * WIDTH) for v in range(vectors)]
            minus = [builder.fneg(emit.load(FLOATS, emit.address(pivots, at))) for at in ats]

            def step(index: Any, sums: list[Any]) -> list[Any]:
                row = emit.address(scores, builder.mul(index, LONG(vectors * WIDTH)))
                added = []
                for at, less, total in zip(ats, minus, sums, strict=True):
                    place = emit.address(row, at)
                    power = emit.multiply_add(emit.load(FLOATS, place), scale, less)
                    is_nothing = builder.fcmp_ordered("<", power, floats(FLOOR))
                    weight = builder.select(is_nothing, floats(0.0), exp2(emit, power))
                    emit.store(weight, place)
                    added.append(builder.fadd(total, weight))
                return added

            starts = [emit.load(FLOATS, emit.address(totals, at)) for at in ats]
            for at, total in zip(ats, emit.loop(count, starts, step), strict=True):
                emit.store(total, emit.address(totals, at))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.float32, types.int64, types.int64), generate

    return f  # type: ignore[no-any-return]
