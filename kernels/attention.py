"""Attention of a few query rows over one piece of KV, as a state that merges with others.

A state is (out, lse): the softmax-weighted values and the natural logarithm of the softmax's denominator. States over
disjoint keys merge exactly (Milakov & Gimelshein, arXiv 1805.02867; FlashInfer's cascade uses the same algebra).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.soft_cap import attend_soft_capped

# With few rows, the query heads that share a KV head are stacked as rows of one head, so that each key is read
# once for all of them; with many rows the copy that this takes costs more than it saves.
MAX_STACKED_ROWS = 256

_flash_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """One state: `out` (heads, rows, dim) in the query's dtype, `lse` (heads, rows) in float32.

    query (heads, rows, dim); key, value (kv_heads, length, dim) with length > 0 and heads a multiple of kv_heads.
    `causal` takes rows == length. `mask` (rows, length) is added to the scaled (and capped) scores; it is finite
    (`masked_score`) where a row may see nothing at all, whose state then weighs nothing in a merge.
    """
    if softcap is not None:
        return attend_soft_capped(query, key, value, scale, softcap, causal=causal, mask=mask)
    if query.device.type != "cpu":
        return attend_reference(query, key, value, scale, causal=causal, mask=mask)
    rows, kv_heads = query.shape[1], key.shape[0]
    if causal or mask is not None or rows > MAX_STACKED_ROWS:
        out, lse = _flash_cpu(query[None], key[None], value[None], 0.0, causal, attn_mask=mask, scale=scale)
        return out[0], lse[0]
    stacked = query.reshape(kv_heads, -1, query.shape[2])
    out, lse = _flash_cpu(stacked[None], key[None], value[None], 0.0, False, scale=scale)
    return out[0].reshape(query.shape), lse[0].reshape(query.shape[:2])


def attend_each(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    spans: Sequence[tuple[int, int]],
    scale: float,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """One state a row: row i of `query` (heads, rows, dim) attends to slots `[start, end)` = `spans[i]`.

    keys, values (kv_heads, slots, dim), contiguous. Returns `out` (heads, rows, dim) and `lse` (heads, rows). What
    costs is the number of torch calls, so each row takes three: two views and the attention itself.
    """
    kv_heads, slots, dim = keys.shape
    if query.device.type != "cpu" or softcap is not None:
        states = [
            attend(query[:, row : row + 1], keys[:, start:end], values[:, start:end], scale, softcap=softcap)
            for row, (start, end) in enumerate(spans)
        ]
        return torch.cat([out for out, _ in states], 1), torch.cat([lse for _, lse in states], 1)
    stacked = query.reshape(kv_heads, -1, len(spans), dim).permute(2, 0, 1, 3).contiguous()
    outs, lses = [], []
    for row, (start, end) in enumerate(spans):
        view = ((1, kv_heads, end - start, dim), (keys.numel(), slots * dim, dim, 1), start * dim)
        out, lse = _flash_cpu(
            stacked[row : row + 1], keys.as_strided(*view), values.as_strided(*view), 0.0, False, scale=scale
        )
        outs.append(out)
        lses.append(lse)
    out = torch.cat(outs).permute(1, 2, 0, 3).reshape(query.shape)
    return out, torch.cat(lses).permute(1, 2, 0).reshape(query.shape[:2])


def merge_into(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> None:
    """Merges the state `other` into (out, lse), in place.

    With w = sigmoid(other_lse - lse), the other state's share of the joint denominator, out is a mean weighted by w.
    """
    share = torch.sigmoid(other_lse - lse).to(out.dtype)
    out.lerp_(other_out, share[..., None])
    torch.logaddexp(lse, other_lse, out=lse)


def add_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> None:
    """Adds one logit a head, `sinks` (heads,), to the softmax's denominator of a whole state, in place.

    It is a merge with a state whose value is zero (GPT-OSS; Xiao et al., arXiv 2309.17453).
    """
    out.mul_(torch.sigmoid(lse - sinks[:, None]).to(out.dtype)[..., None])


def masked_score(dtype: torch.dtype) -> float:
    """What a mask holds where nothing is read: so low that no score counts beside it, yet finite."""
    return torch.finfo(dtype).min / 2


def attend_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`attend` by its definition, in float32, on any device: the twin that every faster path is held to."""
    groups = query.shape[0] // key.shape[0]
    scores = query.float() @ key.float().repeat_interleave(groups, 0).transpose(1, 2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    if causal:
        later = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    out = scores.softmax(-1) @ value.float().repeat_interleave(groups, 0)
    return out.to(query.dtype), scores.logsumexp(-1)
