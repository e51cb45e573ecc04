"""Attention of single rows, each over a span of KV of its own: what decoding does."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels import openmp
from kernels.attention import attend_each
from kernels.openmp import Loop, exp, float32_at, float32_of, int64_at, share, words


def attend_rows(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    spans: Tensor,
    scale: float,
    out: Tensor,
    lse: Tensor,
    softcap: float | None = None,
) -> None:
    """Row `rows[i]` of `query` attends to slots `[spans[0, i], spans[1, i])`; its state goes into `out` and `lse`.

    query, out (heads, all rows, dim); lse (heads, all rows) in float32; keys, values (kv_heads, slots, dim),
    contiguous; rows (n,) and spans (2, n) in int64, no span empty. A head's elements lie side by side.
    """
    heads, _, dim = query.shape
    kv_heads = len(keys)
    plain = query.dtype == torch.float32 and query.device.type == "cpu" and softcap is None
    if not plain or not openmp.available():
        pairs = list(zip(*spans.tolist(), strict=True))
        out[:, rows], lse[:, rows] = attend_each(query[:, rows], keys, values, pairs, scale, softcap)
        return
    longest = int((spans[1] - spans[0]).max())
    strides = (query.stride(1), query.stride(0), keys.stride(0), out.stride(1), out.stride(0), lse.stride(0))
    assert query.stride(2) == keys.stride(2) == out.stride(2) == lse.stride(1) == 1
    assert keys.stride() == values.stride()
    sizes = (len(rows), kv_heads, longest, lse.shape[1], keys.shape[1])
    _loop(dim, heads // kv_heads)(query, keys, values, rows, spans, out, lse, *strides, *sizes, scale)


@cache
def _loop(dim: int, group: int) -> Loop:
    """Compiled for one head size and one number of query heads a KV head, so that the inner loops are unrolled."""
    return Loop(_attend_rows(dim, group))


def _attend_rows(dim: int, group: int) -> Callable[[Any], None]:
    def attend_rows(arguments: Any) -> None:
        a = words(arguments, 19)
        query_row, query_head, key_head, out_row, out_head, lse_head = a[7], a[8], a[9], a[10], a[11], a[12]
        count, kv_heads, longest, all_rows, slots = a[13], a[14], a[15], a[16], a[17]
        scale = float32_of(a[18])
        query = float32_at(a[0], all_rows * query_row + kv_heads * group * query_head)
        keys, values = float32_at(a[1], kv_heads * slots * dim), float32_at(a[2], kv_heads * slots * dim)
        rows, spans = int64_at(a[3], count), int64_at(a[4], 2 * count)
        out = float32_at(a[5], all_rows * out_row + kv_heads * group * out_head)
        lse = float32_at(a[6], kv_heads * group * lse_head)
        scores = np.empty((group, longest), np.float32)
        mean = np.empty(dim, np.float32)
        first, last = share(count * kv_heads)
        for unit in range(first, last):
            row, head = rows[unit // kv_heads], unit % kv_heads
            start, end = spans[unit // kv_heads], spans[count + unit // kv_heads]
            length = end - start
            block = head * key_head + start * dim
            for g in range(group):
                at = row * query_row + (head * group + g) * query_head
                q = query[at : at + dim]
                best = np.float32(-np.inf)
                for j in range(length):
                    key = keys[block + j * dim : block + (j + 1) * dim]
                    dot = np.float32(0)
                    for d in range(dim):
                        dot += q[d] * key[d]
                    scores[g, j] = dot * scale
                for j in range(length):
                    best = max(best, scores[g, j])
                total = np.float32(0)
                for j in range(length):
                    scores[g, j] = exp(scores[g, j] - best)
                    total += scores[g, j]
                mean[:] = np.float32(0)
                for j in range(0, length - 3, 4):
                    v = values[block + j * dim : block + (j + 4) * dim]
                    p0, p1, p2, p3 = scores[g, j], scores[g, j + 1], scores[g, j + 2], scores[g, j + 3]
                    for d in range(dim):
                        mean[d] += p0 * v[d] + p1 * v[dim + d] + p2 * v[2 * dim + d] + p3 * v[3 * dim + d]
                for j in range(length - length % 4, length):
                    v = values[block + j * dim : block + (j + 1) * dim]
                    for d in range(dim):
                        mean[d] += scores[g, j] * v[d]
                at = row * out_row + (head * group + g) * out_head
                for d in range(dim):
                    out[at + d] = mean[d] / total
                lse[(head * group + g) * lse_head + row] = best + np.log(total)

    return attend_rows
