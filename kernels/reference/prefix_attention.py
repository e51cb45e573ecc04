"""Attention of a step's packed rows by its definition, in float32: what every faster path is held to."""

import numpy as np
import torch
from torch import Tensor

from kernels.segments import NO_WINDOW, Ints, Segments


def prefix_shared_attention_reference(
    query: Tensor,
    step_key: Tensor,
    step_value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    segments: Segments,
    row_positions: Ints,
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`out` (rows, heads, dim) in the query's dtype; `lse` (rows, heads), the natural log of the denominator.

    query (rows, heads, dim); step_key, step_value (rows, kv_heads, dim), read by in-step segments; key_cache,
    value_cache (blocks, page, kv_heads, dim), whose slot s is entry s % page of block s // page. Keys and values may
    be float8_e4m3fn with scales (kv_heads,), the factor that was divided out. A row that reads nothing gives 0 and
    -inf, without sinks; `sinks` (heads,) is one more logit, which has no value.
    """
    rows, heads, _ = query.shape
    kv_heads = step_key.shape[1]
    out = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
    lse = torch.full((rows, heads), -torch.inf, device=query.device)
    stores = [
        (key_cache.flatten(0, 1).float(), value_cache.flatten(0, 1).float()),
        (step_key.float(), step_value.float()),
    ]
    if key_scales is not None and value_scales is not None:
        stores = [(key * key_scales[:, None], value * value_scales[:, None]) for key, value in stores]
    for row in range(rows):
        keys, values = [], []
        for index in np.flatnonzero((segments.row_start <= row) & (row < segments.row_end)):
            start, end = int(segments.kv_start[index]), int(segments.kv_end[index])
            far = row_positions[row] - (segments.position[index] + np.arange(end - start))
            near = torch.from_numpy((far >= 0) & (far < (window or NO_WINDOW)))
            key, value = stores[int(segments.in_step[index])]
            keys.append(key[start:end][near])
            values.append(value[start:end][near])
        if not keys:
            keys, values = [stores[1][0][:0]], [stores[1][1][:0]]
        key = torch.cat(keys).repeat_interleave(heads // kv_heads, 1)
        value = torch.cat(values).repeat_interleave(heads // kv_heads, 1)
        scores = torch.einsum("hd,khd->hk", query[row].float(), key) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        logits = scores if sinks is None else torch.cat((scores, sinks.float()[:, None]), 1)
        if logits.shape[1] > 0:
            lse[row] = logits.logsumexp(1)
            out[row] = torch.einsum("hk,khd->hd", (scores - lse[row, :, None]).exp(), value)
    return out.to(query.dtype), lse
