"""Powers of two, of vectors."""

from typing import Any

from kernels.cpu.language.vectors import FLOATS, WIDTH, WORDS, Vectors, floats, integers

# 2**x on [-1/2, 1/2], from the constant on, least relative error: 8e-8.
POLYNOMIAL = (1.00000007, 0.69314697, 0.2402212, 0.05550713, 0.00967554, 0.00132765)
# What no exponent is below: its weight counts for nothing, and no product with it is denormal.
FLOOR = -100.0


def exp2(emit: Vectors, x: Any) -> Any:
    """2**x, of vectors: as 2**FLOOR below that; x is at most 127."""
    builder = emit.builder
    x = emit.greater(floats(FLOOR), x)
    power = emit.call(f"llvm.roundeven.v{WIDTH}f32", FLOATS, x)
    rest = builder.fsub(x, power)
    value = floats(POLYNOMIAL[-1])
    for coefficient in POLYNOMIAL[-2::-1]:
        value = emit.multiply_add(value, rest, floats(coefficient))
    exponent = builder.shl(builder.fptosi(power, WORDS), integers(23))
    return builder.bitcast(builder.add(builder.bitcast(value, WORDS), exponent), FLOATS)
