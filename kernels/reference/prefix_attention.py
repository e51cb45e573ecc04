"""Attention of a step's packed rows by its definition, in float32: what every faster path is held to."""

import numpy as np
import torch
from torch import Tensor

from kernels.attention_inputs import AttentionInputs
from kernels.segments import Ints, Segments, reach

KeysValues = tuple[Tensor, Tensor]


def prefix_shared_attention_reference(
    inputs: AttentionInputs,
    segments: Segments,
    row_positions: Ints,
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`out` (rows, heads, dim) in the query's dtype; `lse` (rows, heads), the natural log of the denominator.

    In-step segments read the step's keys, the others the cache. A row that reads nothing gives 0 and -inf, without
    sinks; `sinks` (heads,) is one more logit, which has no value.
    """
    query = inputs.query
    rows, heads, _ = query.shape
    out = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
    lse = torch.full((rows, heads), -torch.inf, device=query.device)
    stores = _stores(inputs)
    for row in range(rows):
        key, value = _read_by(row, stores, segments, row_positions, window)
        key, value = (store.repeat_interleave(heads // store.shape[1], 1) for store in (key, value))
        scores = torch.einsum("hd,khd->hk", query[row].float(), key) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        logits = scores if sinks is None else torch.cat((scores, sinks.float()[:, None]), 1)
        if logits.shape[1] > 0:
            lse[row] = logits.logsumexp(1)
            out[row] = torch.einsum("hk,khd->hd", (scores - lse[row, :, None]).exp(), value)
    return out.to(query.dtype), lse


def _stores(inputs: AttentionInputs) -> tuple[KeysValues, KeysValues]:
    """Keys and values (slots, kv_heads, dim) in float32 of the cache, and of the step."""
    cache = inputs.key_cache.flatten(0, 1).float(), inputs.value_cache.flatten(0, 1).float()
    step = inputs.step_key.float(), inputs.step_value.float()
    if inputs.key_scales is None or inputs.value_scales is None:
        return cache, step
    key_scales, value_scales = inputs.key_scales[:, None], inputs.value_scales[:, None]
    return (cache[0] * key_scales, cache[1] * value_scales), (step[0] * key_scales, step[1] * value_scales)


def _read_by(
    row: int, stores: tuple[KeysValues, KeysValues], segments: Segments, row_positions: Ints, window: int | None
) -> KeysValues:
    """Keys and values (keys, kv_heads, dim) that the row reads, in the segments' order."""
    keys, values = [stores[1][0][:0]], [stores[1][1][:0]]
    for index in np.flatnonzero((segments.row_start <= row) & (row < segments.row_end)):
        start, end = int(segments.kv_start[index]), int(segments.kv_end[index])
        distance = row_positions[row] - (segments.position[index] + np.arange(end - start))
        near = torch.from_numpy((distance >= 0) & (distance < reach(window)))
        key, value = stores[int(segments.in_step[index])]
        keys.append(key[start:end][near])
        values.append(value[start:end][near])
    return torch.cat(keys), torch.cat(values)
