"""A segment of keys that many queries read: queries are the lanes of vectors, a block of keys after the other."""

from typing import Any

import numpy as np

from kernels.cpu.attention.attention_block import make_block
from kernels.cpu.attention.attention_scratch import KEYS, MAX_VECTORS
from kernels.cpu.attention.attention_work import PER_WORD, Block
from kernels.cpu.attention.byte_kv import pack_values, read_scales, row_size
from kernels.cpu.language.jit import intrinsic, njit, types
from kernels.cpu.language.openmp import int32_at, int64_at, uint16_at
from kernels.cpu.language.vectors import WIDTH, WORDS, Vectors, from_bfloat16, integers, interleave
from kernels.kv_format import CHUNK as BYTE_CHUNK
from kernels.processor import NATIVE_BFLOAT16


def make_shared_segment(kind: str) -> Any:
    """For numba: `f(segment, place, tile, work, positions, scratch)`: a segment's keys for the rows that read it.

    `place` is the address of the first of its keys, and of its values; `scratch` has addresses too. Where no
    instruction multiplies bfloat16, a block of pairs becomes float32 before all queries meet it.
    """
    widens = kind == "pairs" and not NATIVE_BFLOAT16
    block_1, block_2, block_3 = (make_block(vectors, "float32" if widens else kind) for vectors in (1, 2, 3))
    prepare, itemsize = _make_preparation(kind), 4 // PER_WORD[kind]

    @njit(error_model="numpy")
    def shared_segment(segment: Any, place: Any, tile: Any, work: Any, positions: Any, scratch: Any) -> None:
        first_vector, last_vector, start, end = _limit(segment, tile, work, positions, scratch)
        size = row_size(work.dim, itemsize)
        # Of a vector of lanes at an edge, some may be other rows', which read nothing here: NaN times no weight is NaN.
        has_others = segment.row_start > tile.row or segment.row_end < tile.row + tile.rows
        edges = (first_vector, last_vector - 1)
        for edge in range(2 if has_others else 0):
            _keep_sums(edges[edge], edge, work, scratch)
        for first_key in range(start, end, KEYS):
            keys, values = place[0] + size * first_key, place[1] + size * first_key
            ready, is_ready = (keys, values, values), False
            for vector in range(first_vector, last_vector, MAX_VECTORS):
                bounds = int64_at(scratch.bounds + 32 * vector, 4)
                last_key: Any = min(first_key + KEYS, bounds[1])
                if last_key <= max(first_key, bounds[0]):
                    continue
                prefetches = not is_ready and not widens
                if not is_ready:
                    ready, is_ready = prepare(keys, values, min(KEYS, end - first_key), work, scratch), True
                is_masked = first_key < bounds[2] or last_key > bounds[3]
                keys_at, values_at, packed = ready
                length, lane = last_key - first_key, vector * WIDTH
                block = Block(keys_at, values_at, packed, length, first_key, lane, is_masked, prefetches)
                vectors = min(last_vector - vector, MAX_VECTORS)
                if vectors == 3:
                    block_3(block, work, scratch)
                elif vectors == 2:
                    block_2(block, work, scratch)
                else:
                    block_1(block, work, scratch)
        for edge in range(2 if has_others else 0):
            _restore_sums(edges[edge], edge, work, scratch)

    return shared_segment


@njit(error_model="numpy")
def _keep_sums(vector: int, edge: int, work: Any, scratch: Any) -> None:
    """Copies the sums so far of the vector's lanes that read nothing to `scratch.kept`."""
    at, kept = 4 * vector * WIDTH, scratch.kept + 4 * edge * (work.dim + 1) * WIDTH
    upper, weights = scratch.upper + at, kept + 4 * work.dim * WIDTH
    _copy_idle(upper, scratch.totals + at, work.lanes, kept, WIDTH, work.dim)
    _copy_idle(upper, scratch.total + at, WIDTH, weights, WIDTH, 1)


@njit(error_model="numpy")
def _restore_sums(vector: int, edge: int, work: Any, scratch: Any) -> None:
    """Copies them back."""
    at, kept = 4 * vector * WIDTH, scratch.kept + 4 * edge * (work.dim + 1) * WIDTH
    upper, weights = scratch.upper + at, kept + 4 * work.dim * WIDTH
    _copy_idle(upper, kept, WIDTH, scratch.totals + at, work.lanes, work.dim)
    _copy_idle(upper, weights, WIDTH, scratch.total + at, WIDTH, 1)


@intrinsic
def _copy_idle(_: Any, upper: Any, source: Any, source_row: Any, target: Any, target_row: Any, rows: Any) -> Any:
    """For numba: `rows` vectors of source become target's where `upper` is 0 or less; addresses, strides in words."""

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        upper, source, source_row, target, target_row, rows = arguments
        emit = Vectors(builder)
        reads = builder.icmp_signed(">", emit.load(WORDS, upper), integers(0))

        def step(index: Any, _: list[Any]) -> list[Any]:
            place = emit.address(target, builder.mul(index, target_row))
            given = emit.load(WORDS, emit.address(source, builder.mul(index, source_row)))
            emit.store(builder.select(reads, emit.load(WORDS, place), given), place)
            return []

        emit.loop(rows, [], step)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


@njit(error_model="numpy")
def _limit(segment: Any, tile: Any, work: Any, positions: Any, scratch: Any) -> tuple[int, int, Any, Any]:
    """The vectors of lanes that read the segment, and its keys that any reads: first and last of both.

    `scratch.lower` and `upper` get the keys that each lane reads, and `bounds`, of the lanes that a block takes at
    once, those that any reads and those that all do.
    """
    group = work.group
    lower, upper = int32_at(scratch.lower, work.lanes), int32_at(scratch.upper, work.lanes)
    first_row, last_row = max(segment.row_start - tile.row, 0), min(segment.row_end - tile.row, tile.rows)
    length, position = segment.kv_end - segment.kv_start, segment.position
    first_vector, last_vector = first_row * group // WIDTH, -(last_row * group // -WIDTH)
    for lane in range(first_vector * WIDTH, last_vector * WIDTH):
        r = lane // group
        lower[lane], upper[lane] = 0, 0
        if first_row <= r < last_row:
            upper[lane] = min(positions[tile.row + r] - position + 1, length)
            lower[lane] = max(positions[tile.row + r] - work.window + 1 - position, 0)
    start = length
    for r in range(first_row, last_row):
        start = min(start, lower[r * group])
    end = np.int64(0)
    for vector in range(first_vector, last_vector, MAX_VECTORS):
        least, most, inner_least, inner_most = length, np.int64(0), np.int64(0), length
        for lane in range(vector * WIDTH, min(vector + MAX_VECTORS, last_vector) * WIDTH):
            if upper[lane] > 0:
                inner_least, inner_most = max(inner_least, lower[lane]), min(inner_most, upper[lane])
                least, most = min(least, lower[lane]), max(most, upper[lane])
        bounds = int64_at(scratch.bounds + 32 * vector, 4)
        bounds[0], bounds[1], bounds[2], bounds[3] = least, most, inner_least, inner_most
        end = max(end, most)
    return first_vector, last_vector, start, end


def _make_preparation(kind: str) -> Any:
    """For numba: `f(keys, values, length, work, scratch)`: a block's keys, values, and values as sums take them.

    All three are addresses.
    """
    if kind == "bytes":
        return _pack_bytes
    if kind == "float32":
        return _as_they_are
    return _pack_pairs if NATIVE_BFLOAT16 else _widen_pairs


@njit(error_model="numpy")
def _as_they_are(keys: int, values: int, length: int, work: Any, scratch: Any) -> tuple[int, int, int]:
    return keys, values, values


@njit(error_model="numpy")
def _pack_bytes(keys: int, values: int, length: int, work: Any, scratch: Any) -> tuple[int, int, Any]:
    """Reads the rows' scales too."""
    scales = scratch.key_scales, scratch.terms, scratch.inverses
    read_scales(keys, values, length, work.dim, work.factor, scales)
    packed = scratch.values
    pack_values(values, length, work.dim // BYTE_CHUNK, packed)
    return keys, values, packed


@njit(error_model="numpy")
def _widen_pairs(keys: int, values: int, length: int, work: Any, scratch: Any) -> tuple[Any, Any, Any]:
    wide_keys, wide_values = scratch.keys, scratch.values
    widen(keys, length * work.dim, wide_keys)
    widen(values, length * work.dim, wide_values)
    return wide_keys, wide_values, wide_values


@njit(error_model="numpy")
def widen(halves: int, count: int, out: int) -> None:
    """`count` numbers of bfloat16 become float32; addresses."""
    whole = count // WIDTH * WIDTH
    if whole:
        from_bfloat16(halves, whole // WIDTH, out)
    source, target = uint16_at(halves, count), int32_at(out, count)
    for i in range(whole, count):
        target[i] = np.int32(source[i]) << np.int32(16)


@njit(error_model="numpy")
def _pack_pairs(keys: int, values: int, length: int, work: Any, scratch: Any) -> tuple[int, int, Any]:
    """Values of two neighbouring keys in a word: packed[key / 2, d]."""
    dim, packed = work.dim, scratch.values
    source, as_words = uint16_at(values, length * dim), int32_at(packed, (length + 1) // 2 * dim)
    whole = dim // WIDTH
    for j in range(length // 2):
        even, target = values + 4 * j * dim, packed + 4 * j * dim
        if whole:
            interleave(even, even + 2 * dim, target, whole)
        for d in range(whole * WIDTH, dim):
            word = np.int32(source[2 * j * dim + d]) | (np.int32(source[(2 * j + 1) * dim + d]) << np.int32(16))
            as_words[j * dim + d] = word
    if length % 2:
        for d in range(dim):
            as_words[length // 2 * dim + d] = np.int32(source[(length - 1) * dim + d])
    return keys, values, packed
