"""Rotary embedding and the write into the paged cache in one pass: each key and value is read once and written once."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.e4m3 import to_e4m3
from kernels.gpu.rms_norm import rms_norm_rounded_reference

ROWS = 16


@dataclass(frozen=True, slots=True, eq=False)
class HeadNorms:
    """RMS norms over the dimensions of a head, the same for all: weights (dim,)."""

    query: Tensor
    key: Tensor
    eps: float


@triton.jit
def _normed(x, other, weight, eps, d, partner, DIM: tl.constexpr, dtype: tl.constexpr):
    """Rows of a head, and what their dimensions turn with, through an RMS norm, rounded as all norms are."""
    factor = tl.rsqrt(tl.sum(x * x, 1) / DIM + eps)[:, None]
    own = tl.load(weight + d, mask=d < DIM, other=0).to(tl.float32)[None, :]
    partners = tl.load(weight + partner, mask=partner < DIM, other=0).to(tl.float32)[None, :]
    x = ((x * factor).to(dtype).to(tl.float32) * own).to(dtype).to(tl.float32)
    other = ((other * factor).to(dtype).to(tl.float32) * partners).to(dtype).to(tl.float32)
    return x, other


@triton.jit(do_not_specialize=["rows"])
def rope_write_kernel(
    query,
    key,
    value,
    cos,
    sin,
    slots,
    turned,
    step_key,
    step_value,
    key_cache,
    value_cache,
    key_scales,
    value_scales,
    query_norm,
    key_norm,
    eps,
    rows,
    query_row,
    query_head,
    key_row,
    key_head,
    value_row,
    value_head,
    cache_block,
    cache_slot,
    cache_head,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROTARY: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    FP8: tl.constexpr,
    NORMED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Program (i, j): `ROWS` rows of query head j, or of keys and values of head j - HEADS. Results are contiguous."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    real = row < rows
    slot = tl.load(slots + row, mask=real, other=-1)
    row = row.to(tl.int64)
    d = tl.arange(0, BLOCK_DIM)
    cell = real[:, None] & (d[None, :] < DIM)
    turns = real[:, None] & (d[None, :] < ROTARY)
    # Dimension d is turned with the one half a rotary width away: minus it below the half, plus it above.
    half: tl.constexpr = ROTARY // 2
    partner = tl.where(d < half, d + half, d - half)
    c = tl.load(cos + row[:, None] * ROTARY + d[None, :], mask=turns, other=1).to(tl.float32)
    s = tl.load(sin + row[:, None] * ROTARY + d[None, :], mask=turns, other=0).to(tl.float32)
    s = tl.where(d[None, :] < half, -s, s)
    if head < HEADS:
        place = query + (row * query_row + head.to(tl.int64) * query_head)[:, None]
        x = tl.load(place + d[None, :], mask=cell, other=0).to(tl.float32)
        other = tl.load(place + partner[None, :], mask=turns, other=0).to(tl.float32)
        if NORMED:
            x, other = _normed(x, other, query_norm, eps, d, partner, DIM, query.dtype.element_ty)
        target = turned + ((row * HEADS + head) * DIM)[:, None] + d[None, :]
        tl.store(target, (x * c + other * s).to(turned.dtype.element_ty), mask=cell)
    else:
        head = head - HEADS
        place = key + (row * key_row + head.to(tl.int64) * key_head)[:, None]
        x = tl.load(place + d[None, :], mask=cell, other=0).to(tl.float32)
        other = tl.load(place + partner[None, :], mask=turns, other=0).to(tl.float32)
        if NORMED:
            x, other = _normed(x, other, key_norm, eps, d, partner, DIM, key.dtype.element_ty)
        k = x * c + other * s
        v_place = value + (row * value_row + head.to(tl.int64) * value_head)[:, None] + d[None, :]
        v = tl.load(v_place, mask=cell, other=0).to(tl.float32)
        if FP8:
            k = to_e4m3(k / tl.load(key_scales + head))
            v = to_e4m3(v / tl.load(value_scales + head))
        k, v = k.to(key_cache.dtype.element_ty), v.to(value_cache.dtype.element_ty)
        in_step = ((row * KV_HEADS + head) * DIM)[:, None] + d[None, :]
        tl.store(step_key + in_step, k, mask=cell)
        tl.store(step_value + in_step, v, mask=cell)
        kept = cell & (slot >= 0)[:, None]
        slot = tl.maximum(slot, 0).to(tl.int64)
        in_cache = slot // PAGE * cache_block + slot % PAGE * cache_slot + head.to(tl.int64) * cache_head
        tl.store(key_cache + in_cache[:, None] + d[None, :], k, mask=kept)
        tl.store(value_cache + in_cache[:, None] + d[None, :], v, mask=kept)


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
    kv_heads, rotary, page = key.shape[1], cos.shape[1], key_cache.shape[1]
    assert rotary <= dim, (rotary, dim)
    assert rotary % 2 == 0, rotary
    assert key_cache.stride() == value_cache.stride(), (key_cache.stride(), value_cache.stride())
    fp8 = key_cache.dtype == torch.float8_e4m3fn
    turned = torch.empty((rows, heads, dim), dtype=query.dtype, device=query.device)
    step = [torch.empty((rows, kv_heads, dim), dtype=key_cache.dtype, device=query.device) for _ in range(2)]
    stores = [t.view(torch.uint8) if fp8 else t for t in (*step, key_cache, value_cache)]
    rope_write_kernel[(triton.cdiv(rows, ROWS), heads + kv_heads)](
        query,
        key,
        value,
        cos.contiguous(),
        sin.contiguous(),
        slots,
        turned,
        *stores,
        key_scales if key_scales is not None else turned,
        value_scales if value_scales is not None else turned,
        norms.query if norms is not None else turned,
        norms.key if norms is not None else turned,
        norms.eps if norms is not None else 0.0,
        rows,
        *query.stride()[:2],
        *key.stride()[:2],
        *value.stride()[:2],
        *key_cache.stride()[:3],
        HEADS=heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        ROTARY=rotary,
        BLOCK_DIM=triton.next_power_of_2(dim),
        PAGE=page,
        FP8=fp8,
        NORMED=norms is not None,
        ROWS=ROWS,
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
        dim = query.shape[-1]
        query = rms_norm_rounded_reference(query.reshape(-1, dim), norms.query, norms.eps).view(query.shape)
        key = rms_norm_rounded_reference(key.reshape(-1, dim), norms.key, norms.eps).view(key.shape)
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
