"""Attention over segments in torch: on any device and in any dtype, and what faster paths are held to.

A state is (out, lse): the softmax-weighted values and the natural logarithm of the softmax's denominator. States over
disjoint keys merge exactly (Milakov & Gimelshein, arXiv 1805.02867; FlashInfer's cascade uses the same algebra).
"""

import torch
from torch import Tensor

from kernels.cpu.attention.attention_plan import AttentionPlan
from kernels.cpu.attention.byte_kv import keys_of, values_of
from kernels.kv_format import INT8_ROWS, kv_format_of

KVPair = tuple[Tensor, Tensor]
_flash_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def segment_attention(
    plan: AttentionPlan,
    query: Tensor,
    cache: KVPair,
    own: KVPair,
    scale: float,
    out: Tensor,
    *,
    window: int | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """As `kernels.cpu.attention.cpu_attention`, in any dtype and on any device; of 8 bits nothing else is rounded."""
    heads_first = query.transpose(0, 1)
    means = torch.zeros_like(heads_first, dtype=torch.float32)
    lse = query.new_full(heads_first.shape[:2], -torch.inf, dtype=torch.float32)
    positions = torch.from_numpy(plan.positions).to(query.device)
    for row_start, row_end, kv_start, kv_end, position, in_step in plan.segments:
        rows, (keys, values) = slice(row_start, row_end), own if in_step else cache
        behind = positions[rows, None] - torch.arange(position, position + kv_end - kv_start, device=query.device)
        hidden = behind < 0 if window is None else (behind < 0) | (behind >= window)
        mask = torch.zeros(hidden.shape, device=query.device).masked_fill_(hidden, -torch.inf) if hidden.any() else None
        key, value = (tensor[:, kv_start:kv_end] for tensor in (keys, values))
        if kv_format_of(keys.dtype) == INT8_ROWS:
            key, value = keys_of(key), values_of(value)
        key, value = key.to(query.dtype), value.to(query.dtype)
        part = attend(heads_first[:, rows], key, value, scale, mask=mask, softcap=softcap)
        merge_into(means[:, rows], lse[:, rows], *part)
    if sinks is not None:
        means *= torch.sigmoid(lse - sinks[:, None])[..., None]
    return out.copy_(means.transpose(0, 1))


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, mask: Tensor | None = None, softcap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """One state: `out` (heads, rows, dim) and `lse` (heads, rows) in float32; a row that reads nothing has -inf.

    query (heads, rows, dim); key, value (kv_heads, length, dim) with length > 0 and heads a multiple of kv_heads.
    `mask` (rows, length) is added to the scaled (and capped) scores.
    """
    if query.device.type == "cpu" and mask is None and not softcap:
        out, lse = _flash_cpu(query[None], key[None], value[None], 0.0, False, scale=scale)
        return out[0].float(), lse[0]
    groups = query.shape[0] // key.shape[0]
    scores = query.float() @ key.float().repeat_interleave(groups, 0).transpose(1, 2) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.nan_to_num(neginf=0.0)[..., None])
    return weights @ value.float().repeat_interleave(groups, 0), lse


def merge_into(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> None:
    """Merges the state `other` into (out, lse), in place; one that reads nothing (-inf) weighs nothing.

    With w = sigmoid(other_lse - lse), the other state's share of the joint denominator, out is a mean weighted by w.
    """
    share = torch.sigmoid(other_lse - lse).masked_fill_(torch.isneginf(other_lse), 0.0)
    out.lerp_(other_out, share[..., None])
    torch.logaddexp(lse, other_lse, out=lse)
