"""The gate of a gated MLP, on a tile of products that is still in a core's own cache."""

from typing import Any

from kernels.cpu.language.exp2 import exp2
from kernels.cpu.language.jit import intrinsic, types
from kernels.cpu.language.vectors import FLOATS, LONG, WIDTH, Vectors, floats

MINUS_LOG2E = -1.4426950408889634
# 2**x beside which 1 is nothing, with room to spare.
HIGHEST = 126.0


@intrinsic
def gate(_: Any, gates: Any, ups: Any, vectors: Any) -> Any:
    """For numba: gates become silu(gates) * ups, `vectors` vectors of float32 each; silu(x) = x / (1 + e^-x)."""

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        gates, ups, count = arguments
        emit = Vectors(builder)

        def step(index: Any, _: list[Any]) -> list[Any]:
            at = builder.mul(index, LONG(WIDTH))
            x, up = (emit.load(FLOATS, emit.address(base, at)) for base in (gates, ups))
            power = builder.fmul(x, floats(MINUS_LOG2E))
            power = builder.select(builder.fcmp_ordered(">", power, floats(HIGHEST)), floats(HIGHEST), power)
            below = builder.fadd(exp2(emit, power), floats(1.0))
            emit.store(builder.fmul(builder.fdiv(x, below), up), emit.address(gates, at))
            return []

        emit.loop(count, [], step)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate
