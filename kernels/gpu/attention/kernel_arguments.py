"""Arguments of the attention kernels that belong together, as Triton takes them: tuples whose fields have names.

On the host a pointer is a tensor and a stride a number of elements; in a kernel both are Triton's own values. Fields in
capitals are compiled in. Every tensor has a stride of 1 along its last dimension.
"""

from typing import NamedTuple

from torch import Tensor


class HeadRows(NamedTuple):
    """(rows, heads, dim)"""

    ptr: Tensor
    row_stride: int
    head_stride: int

    @classmethod
    def of(cls, tensor: Tensor) -> "HeadRows":
        return cls(tensor, tensor.stride(0), tensor.stride(1))


class KeyValue(NamedTuple):
    """A key's and a value's tensor, contiguous."""

    key_ptr: Tensor
    value_ptr: Tensor


class StepKV(NamedTuple):
    """(rows, kv_heads, dim), keys and values in the same strides."""

    key_ptr: Tensor
    value_ptr: Tensor
    row_stride: int
    head_stride: int

    @classmethod
    def of(cls, key: Tensor, value: Tensor) -> "StepKV":
        return cls(key, value, key.stride(0), key.stride(1))


class CacheKV(NamedTuple):
    """(blocks, page, kv_heads, dim), keys and values in the same strides."""

    key_ptr: Tensor
    value_ptr: Tensor
    block_stride: int
    slot_stride: int
    head_stride: int

    @classmethod
    def of(cls, key: Tensor, value: Tensor) -> "CacheKV":
        return cls(key, value, key.stride(0), key.stride(1), key.stride(2))


class Partials(NamedTuple):
    """Results that wait for the merge, float32: out (partial rows, heads, dim), lse (partial rows, heads) in base 2."""

    out_ptr: Tensor
    lse_ptr: Tensor


class Reads(NamedTuple):
    """What attention reads of a layer."""

    query_ptr: Tensor
    step: KeyValue
    cache: KeyValue


class Results(NamedTuple):
    """What attention writes: out, and lse (rows, heads) in float32."""

    out_ptr: Tensor
    lse_ptr: Tensor
    partials: Partials


class AttendStrides(NamedTuple):
    """Of query and out (rows, heads, dim), the step (rows, kv_heads, dim), the cache (blocks, page, kv_heads, dim)."""

    query_row: int
    query_head: int
    step_row: int
    step_head: int
    cache_block: int
    cache_slot: int
    cache_head: int
    out_row: int
    out_head: int


class ItemTables(NamedTuple):
    """`WorkItems` on the device, int32."""

    items_ptr: Tensor
    pieces_ptr: Tensor
    block_table_ptr: Tensor
    positions_ptr: Tensor


class MergeTables(NamedTuple):
    """Rows to merge, int32: `num_rows` (1,) of them are real; row i has the partial rows from start i to i + 1."""

    num_rows_ptr: Tensor
    rows_ptr: Tensor
    starts_ptr: Tensor
    partials_ptr: Tensor


class TileRows(NamedTuple):
    """Stacked query rows of a small and of a large tile."""

    SMALL: int
    LARGE: int


class AttendSizes(NamedTuple):
    """`SLICE` of a KV head's `GROUP` query heads make a program; `KEYS` a block; `BLOCK_DIM + REST_DIM` hold `DIM`."""

    HEADS: int
    GROUP: int
    SLICE: int
    DIM: int
    BLOCK_DIM: int
    REST_DIM: int
    PAGE: int
    KEYS: int
    CAPPED: bool
    SINKS: bool
    FP8: bool


class MergeSizes(NamedTuple):
    """A program merges `BLOCK_HEADS` heads, of `BLOCK_PARTIALS` partial results at a time."""

    HEADS: int
    BLOCK_HEADS: int
    BLOCK_PARTIALS: int
    DIM: int
    BLOCK_DIM: int
    SINKS: bool


class Rotation(NamedTuple):
    """cos and sin (rows, rotary), contiguous."""

    cos_ptr: Tensor
    sin_ptr: Tensor


class NormWeights(NamedTuple):
    """Weights (dim,) of the norms of query and key heads, where `NORMED`."""

    query_ptr: Tensor
    key_ptr: Tensor
    eps: float


class WriteSizes(NamedTuple):
    """A program turns or writes `ROWS` rows of a head; the first `ROTARY` of `DIM` dimensions turn.

    `NORMED` heads are `ROUNDED` before the norm's weight too.
    """

    HEADS: int
    KV_HEADS: int
    DIM: int
    BLOCK_DIM: int
    ROTARY: int
    PAGE: int
    ROWS: int
    FP8: bool
    NORMED: bool
    ROUNDED: bool
