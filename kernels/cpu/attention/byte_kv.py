"""Keys and values in 8 bits: a row of bytes, and what a step of them is worth in the four bytes behind it.

A key's bytes have their zero at 128, and what is behind them is their scale. A value's are signed, and behind them is
the power of two that is their scale: a weight times a scale is one exponential of their sum, so the products of weights
and values are sums of bytes alone, though every key has a scale of its own (SageAttention, arXiv 2410.02367, has one
for many keys, and leaves values in 16 bits). The sum of the weights themselves takes the scales out again.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.attention.attention_work import LN2
from kernels.cpu.language.hadamard import to_bytes
from kernels.cpu.language.jit import FASTMATH, intrinsic, ir, njit, types
from kernels.cpu.language.openmp import as_float32, bits_of, exp, float32_at
from kernels.cpu.language.vectors import BYTE, FLOAT, HALF, LONG, WIDTH, WORD, WORDS, Vectors, integers
from kernels.kv_format import CHUNK, SCALE_BYTES

# What a row's largest magnitude is at least taken for: all are nothing below.
LEAST_KEY, LEAST_VALUE = 1e-30, 127 * 2.0**-30


@njit(inline="always", error_model="numpy")
def row_size(dim: int, itemsize: int) -> int:
    """`KVFormat.row_bytes` for loops: of the formats that the CPU keeps, the one of single bytes has a scale a row."""
    return dim * itemsize + (SCALE_BYTES if itemsize == 1 else 0)


def key_rows(keys: Tensor) -> Tensor:
    """keys (..., dim) in float32 as (..., dim + 4) bytes; one that is not finite has a scale that is not."""
    largest = keys.abs().amax(-1, keepdim=True)
    whole = (keys * (127 / largest.clamp_min(LEAST_KEY))).round().nan_to_num(0.0).clamp(-127, 127)
    return torch.cat([(whole + 128).to(torch.uint8), (largest * float(np.float32(1 / 127))).view(torch.uint8)], -1)


def value_rows(values: Tensor) -> Tensor:
    """values (..., dim) in float32 as (..., dim + 4) bytes; what 1 is in steps is a number of bfloat16."""
    largest = values.abs().amax(-1, keepdim=True)
    steps = ((127 / largest.clamp_min(LEAST_VALUE)).view(torch.int32) & -65536).view(torch.float32)
    whole = (values * steps).round().nan_to_num(0.0).clamp(-127, 127).to(torch.int8)
    powers = torch.where(largest.isfinite(), -steps.log2(), torch.nan)
    return torch.cat([whole.view(torch.uint8), powers.view(torch.uint8)], -1)


def keys_of(rows: Tensor) -> Tensor:
    """What `key_rows` kept, in float32."""
    return (rows[..., :-SCALE_BYTES].float() - 128) * rows[..., -SCALE_BYTES:].contiguous().view(torch.float32)


def values_of(rows: Tensor) -> Tensor:
    """What `value_rows` kept, in float32."""
    powers = rows[..., -SCALE_BYTES:].contiguous().view(torch.float32)
    return rows[..., :-SCALE_BYTES].contiguous().view(torch.int8).float() * powers.exp2()


@intrinsic
def largest_magnitude(_: Any, values: Any, vectors: Any) -> Any:
    """For numba: the largest magnitude of so many vectors; not finite where one is not."""

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        values, vectors = arguments
        emit = Vectors(builder)

        def step(index: Any, most: list[Any]) -> list[Any]:
            # Magnitudes compare as their bits do, and what is not finite is above all that is.
            words = emit.load(WORDS, emit.address(values, builder.mul(index, LONG(WIDTH))))
            bits = builder.and_(words, integers(0x7FFFFFFF))
            return [builder.select(builder.icmp_signed(">", bits, most[0]), bits, most[0])]

        (most,) = emit.loop(vectors, [integers(0)], step)
        return builder.bitcast(emit.call(f"llvm.vector.reduce.umax.v{WIDTH}i32", WORD, most), FLOAT)

    return types.float32(types.int64, types.int64), generate


@njit(error_model="numpy")
def write_key(source: int, dim: int, target: int) -> None:
    """As `key_rows`, of one row; addresses."""
    largest = largest_magnitude(source, dim // WIDTH)
    to_bytes(source, np.float32(127) / max(largest, np.float32(LEAST_KEY)), target, dim // WIDTH, 128)
    float32_at(target + dim, 1)[0] = largest * np.float32(1 / 127)


@njit(error_model="numpy")
def write_value(source: int, dim: int, target: int) -> None:
    """As `value_rows`, of one row; addresses."""
    largest = largest_magnitude(source, dim // WIDTH)
    exact = np.float32(127) / max(largest, np.float32(LEAST_VALUE))
    steps = as_float32(bits_of(exact) & np.int32(-65536))
    to_bytes(source, steps, target, dim // WIDTH, 0)
    float32_at(target + dim, 1)[0] = -np.log2(steps) if largest < np.float32(np.inf) else np.float32(np.nan)


@njit(error_model="numpy", fastmath=FASTMATH)
def read_scales(keys: int, values: int, count: int, dim: int, factor: Any, places: tuple[int, int, int]) -> None:
    """Of `count` keys: their scales, what scores have added for their values' scales, and the inverses of those.

    To `places`, addresses of room for whole vectors of float32; behind `count`, inverses are 0 up to one. A score is in
    the units that `factor` makes a power of two of.
    """
    row, whole = dim + SCALE_BYTES, -(count // -WIDTH) * WIDTH
    key_scales, terms, inverses = (
        float32_at(places[0], whole),
        float32_at(places[1], whole),
        float32_at(places[2], whole),
    )
    for key in range(count):
        key_scales[key] = float32_at(keys + key * row + dim, 1)[0]
        terms[key] = float32_at(values + key * row + dim, 1)[0]
    unit = np.float32(1) / factor
    for key in range(count):
        inverses[key] = exp(terms[key] * np.float32(-LN2))
        terms[key] *= unit
    for key in range(count, whole):
        inverses[key] = np.float32(0)


@intrinsic
def pack_values(_: Any, values: Any, count: Any, chunks: Any, out: Any) -> Any:
    """For numba: values of four neighbouring keys in a word, out (count / 4, 64 `chunks`): all are addresses.

    What is behind `count` is the last again.
    """

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        values, count, chunks, out = arguments
        emit, last = Vectors(builder), builder.sub(count, LONG(1))
        dim = builder.mul(chunks, LONG(CHUNK))
        row = builder.add(dim, LONG(SCALE_BYTES))

        def quad(index: Any, _: list[Any]) -> list[Any]:
            rows = []
            for part in range(4):
                key = builder.add(builder.shl(index, LONG(2)), LONG(part))
                key = builder.select(builder.icmp_signed("<", key, last), key, last)
                rows.append(builder.add(values, builder.mul(key, row)))
            target = builder.add(out, builder.mul(index, builder.shl(dim, LONG(2))))

            def chunk(place: Any, _: list[Any]) -> list[Any]:
                at = builder.mul(place, LONG(CHUNK))
                given = [emit.load(ir.VectorType(BYTE, CHUNK), builder.add(row, at)) for row in rows]
                first, second = (zipped(emit, *given[i : i + 2], kind=BYTE) for i in (0, 2))
                to = builder.add(target, builder.shl(at, LONG(2)))
                made = [part for pair in zip(first, second, strict=True) for part in zipped(emit, *pair, kind=HALF)]
                for vector, part in enumerate(made):
                    emit.store(part, emit.address(to, LONG(vector * WIDTH)))
                return []

            emit.loop(chunks, [], chunk)
            return []

        emit.loop(builder.ashr(builder.add(count, LONG(3)), LONG(2)), [], quad)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


def zipped(emit: Vectors, left: Any, right: Any, *, kind: Any) -> list[Any]:
    """Two vectors' elements in turns, of so many bits each: the first half of them, and the second."""
    count = 64 * 8 // kind.width
    vector = ir.VectorType(kind, count)
    left, right = (emit.builder.bitcast(x, vector) for x in (left, right))
    orders = ([lane for i in range(half, half + count // 2) for lane in (i, i + count)] for half in (0, count // 2))
    return [emit.builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(WORD, count), o)) for o in orders]
