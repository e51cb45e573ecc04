"""Rotary embedding and the write into the paged cache in one pass: each key and value is read once and written once."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.attention.kernel_arguments import CacheKV, HeadRows, KeyValue, NormWeights, Rotation, WriteSizes
from kernels.gpu.layer.e4m3 import to_e4m3
from kernels.gpu.layer.rms_norm import rms_norm_reference
from kernels.gpu.tuning.launch import launch

ROWS = 16


@dataclass(frozen=True, slots=True, eq=False)
class HeadNorms:
    """RMS norms over the dimensions of a head, the same for all: weights (dim,), `rounded` as in `rms_norm`."""

    query: Tensor
    key: Tensor
    eps: float
    rounded: bool = True


@triton.jit
def _cos_sin(rotation, row, row_mask, d, ROTARY: tl.constexpr):
    """Factors [ROWS, BLOCK_DIM] of a dimension and of what it turns with: minus it below the half, plus it above."""
    mask = row_mask[:, None] & (d[None, :] < ROTARY)
    offset = row[:, None] * ROTARY + d[None, :]
    cos = tl.load(rotation.cos_ptr + offset, mask=mask, other=1).to(tl.float32)
    sin = tl.load(rotation.sin_ptr + offset, mask=mask, other=0).to(tl.float32)
    return cos, tl.where(d[None, :] < ROTARY // 2, -sin, sin)


@triton.jit
def _turned_heads(heads, head, row, row_mask, rotation, weight_ptr, eps, d, SIZES: tl.constexpr):
    """Rows of one head, normed if they are and turned: [ROWS, BLOCK_DIM] in float32."""
    DIM: tl.constexpr = SIZES.DIM
    ROTARY: tl.constexpr = SIZES.ROTARY
    half: tl.constexpr = ROTARY // 2
    # [BLOCK_DIM]
    partner = tl.where(d < half, d + half, d - half)
    # [ROWS, BLOCK_DIM]
    cell_mask = row_mask[:, None] & (d[None, :] < DIM)
    turn_mask = row_mask[:, None] & (d[None, :] < ROTARY)
    cos, sin = _cos_sin(rotation, row, row_mask, d, ROTARY)
    row_ptrs = heads.ptr + (row * heads.row_stride + head.to(tl.int64) * heads.head_stride)[:, None]
    x = tl.load(row_ptrs + d[None, :], mask=cell_mask, other=0).to(tl.float32)
    other = tl.load(row_ptrs + partner[None, :], mask=turn_mask, other=0).to(tl.float32)
    if SIZES.NORMED:
        dtype: tl.constexpr = heads.ptr.dtype.element_ty
        factor = tl.rsqrt(tl.sum(x * x, 1) / DIM + eps)[:, None]
        own = tl.load(weight_ptr + d, mask=d < DIM, other=0).to(tl.float32)[None, :]
        partners = tl.load(weight_ptr + partner, mask=partner < DIM, other=0).to(tl.float32)[None, :]
        x, other = x * factor, other * factor
        if SIZES.ROUNDED:
            x, other = x.to(dtype).to(tl.float32), other.to(dtype).to(tl.float32)
        # Rounded as all norms are.
        x, other = (x * own).to(dtype).to(tl.float32), (other * partners).to(dtype).to(tl.float32)
    return x * cos + other * sin


@triton.jit
def _store_kv(k, v, step, cache, kv_scales, slot, head, row, row_mask, d, SIZES: tl.constexpr):
    """Writes keys and values [ROWS, BLOCK_DIM] of one head beside the step's others, and those with a slot there."""
    cell_mask = row_mask[:, None] & (d[None, :] < SIZES.DIM)
    if SIZES.FP8:
        k = to_e4m3(k / tl.load(kv_scales.key_ptr + head))
        v = to_e4m3(v / tl.load(kv_scales.value_ptr + head))
    k, v = k.to(cache.key_ptr.dtype.element_ty), v.to(cache.value_ptr.dtype.element_ty)
    step_offset = ((row * SIZES.KV_HEADS + head) * SIZES.DIM)[:, None] + d[None, :]
    tl.store(step.key_ptr + step_offset, k, mask=cell_mask)
    tl.store(step.value_ptr + step_offset, v, mask=cell_mask)
    kept_mask = cell_mask & (slot >= 0)[:, None]
    slot = tl.maximum(slot, 0).to(tl.int64)
    slot_offset = slot // SIZES.PAGE * cache.block_stride + slot % SIZES.PAGE * cache.slot_stride
    cache_offset = (slot_offset + head.to(tl.int64) * cache.head_stride)[:, None] + d[None, :]
    tl.store(cache.key_ptr + cache_offset, k, mask=kept_mask)
    tl.store(cache.value_ptr + cache_offset, v, mask=kept_mask)


@triton.jit(do_not_specialize=["num_rows"])
def rope_write_kernel(
    query,
    key,
    value,
    rotation,
    slots_ptr,
    turned_ptr,
    step,
    cache,
    kv_scales,
    norms,
    num_rows,
    SIZES: tl.constexpr,
):
    """Program (i, j): `ROWS` rows of query head j, or of keys and values of head j - HEADS. Results are contiguous."""
    ROWS: tl.constexpr = SIZES.ROWS
    HEADS: tl.constexpr = SIZES.HEADS
    DIM: tl.constexpr = SIZES.DIM
    # [ROWS]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    row_mask = row < num_rows
    slot = tl.load(slots_ptr + row, mask=row_mask, other=-1)
    row = row.to(tl.int64)
    # [BLOCK_DIM]
    d = tl.arange(0, SIZES.BLOCK_DIM)
    # [ROWS, BLOCK_DIM]
    cell_mask = row_mask[:, None] & (d[None, :] < DIM)
    if head < HEADS:
        turned = _turned_heads(query, head, row, row_mask, rotation, norms.query_ptr, norms.eps, d, SIZES)
        turned_ptrs = turned_ptr + ((row * HEADS + head) * DIM)[:, None] + d[None, :]
        tl.store(turned_ptrs, turned.to(turned_ptr.dtype.element_ty), mask=cell_mask)
    else:
        head = head - HEADS
        k = _turned_heads(key, head, row, row_mask, rotation, norms.key_ptr, norms.eps, d, SIZES)
        value_offset = (row * value.row_stride + head.to(tl.int64) * value.head_stride)[:, None] + d[None, :]
        v = tl.load(value.ptr + value_offset, mask=cell_mask, other=0).to(tl.float32)
        _store_kv(k, v, step, cache, kv_scales, slot, head, row, row_mask, d, SIZES)


def rope_write(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    norms: HeadNorms | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Turned query (rows, heads, dim), and the step's keys and values (rows, kv_heads, dim) in the cache's dtype.

    query, key, value as those, in any strides but 1 for dim; cos, sin (rows, rotary), rotary even and at most dim;
    `slots` (rows,) int64, -1 for a row whose KV is not kept. The caches are those of `prefix_attention.run`; of
    float8_e4m3fn what is kept is the number over its head's scale, (kv_heads,). `norms` come before the rotation.
    """
    rows, heads, dim = query.shape
    kv_heads, rotary = key.shape[1], cos.shape[1]
    assert rotary <= dim, (rotary, dim)
    assert rotary % 2 == 0, rotary
    assert key_cache.stride() == value_cache.stride(), (key_cache.stride(), value_cache.stride())
    fp8 = key_cache.dtype == torch.float8_e4m3fn
    turned = torch.empty((rows, heads, dim), dtype=query.dtype, device=query.device)
    step = [torch.empty((rows, kv_heads, dim), dtype=key_cache.dtype, device=query.device) for _ in range(2)]
    stores = [t.view(torch.uint8) if fp8 else t for t in (*step, key_cache, value_cache)]
    launch(
        rope_write_kernel,
        (triton.cdiv(rows, ROWS), heads + kv_heads),
        HeadRows.of(query),
        HeadRows.of(key),
        HeadRows.of(value),
        Rotation(cos.contiguous(), sin.contiguous()),
        slots,
        turned,
        KeyValue(*stores[:2]),
        CacheKV.of(*stores[2:]),
        KeyValue(*(turned if scales is None else scales for scales in (key_scales, value_scales))),
        NormWeights(turned, turned, 0.0) if norms is None else NormWeights(norms.query, norms.key, norms.eps),
        rows,
        WriteSizes(
            HEADS=heads,
            KV_HEADS=kv_heads,
            DIM=dim,
            BLOCK_DIM=triton.next_power_of_2(dim),
            ROTARY=rotary,
            PAGE=key_cache.shape[1],
            ROWS=ROWS,
            FP8=fp8,
            NORMED=norms is not None,
            ROUNDED=norms is not None and norms.rounded,
        ),
        num_warps=4,
    )
    return turned, step[0], step[1]


def rope_write_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    norms: HeadNorms | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`rope_write` by its definition, in float32."""
    if norms is not None:
        query = rms_norm_reference(query, norms.query, norms.eps, rounded=norms.rounded)
        key = rms_norm_reference(key, norms.key, norms.eps, rounded=norms.rounded)
    turned, step_key, step_value = _turned(query, cos, sin), _turned(key, cos, sin), value.float()
    if key_scales is not None and value_scales is not None:
        step_key, step_value = (step_key / key_scales[:, None]), (step_value / value_scales[:, None])
        step_key, step_value = step_key.clamp(-448, 448), step_value.clamp(-448, 448)
    step_key, step_value = step_key.to(key_cache.dtype), step_value.to(value_cache.dtype)
    kept = slots >= 0
    block, offset = slots[kept] // key_cache.shape[1], slots[kept] % key_cache.shape[1]
    key_cache[block, offset], value_cache[block, offset] = step_key[kept], step_value[kept]
    return turned.to(query.dtype), step_key, step_value


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotary = cos.shape[1]
    part, rest = x[..., :rotary].float(), x[..., rotary:].float()
    low, high = part.chunk(2, -1)
    part = part * cos.float()[:, None] + torch.cat((-high, low), -1) * sin.float()[:, None]
    return torch.cat((part, rest), -1)
