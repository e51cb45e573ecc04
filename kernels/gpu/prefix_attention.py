"""The GPU path of attention over shared prefixes: `plan` once a step, `run` once a layer.

`run` launches two kernels, waits for nothing and can be captured in a CUDA graph.
"""

import torch
from torch import Tensor

from kernels.gpu.merge import merge_kernel
from kernels.gpu.prefix_attention_kernel import attend_kernel
from kernels.gpu.prefix_plan import PrefixPlan
from kernels.segments import NO_WINDOW

# Merging is a pass over float32 partials; this many heads a program fill its four warps at 128 dimensions.
MERGE_HEADS = 8


def run(
    plan: PrefixPlan,
    query: Tensor,
    step_key: Tensor,
    step_value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`prefix_shared_attention_reference` on the GPU, with the same arguments and results.

    query (rows, heads, dim); step_key, step_value (rows, kv_heads, dim); key_cache, value_cache (blocks, page,
    kv_heads, dim). Any strides, values as keys, but 1 for the last: a cache whose heads lie apart is a permuted view.
    The step's keys have the cache's dtype, so that a token's KV is the same number wherever it is read. `scale` > 0.
    """
    shape, launch, config = plan.shape, plan.launches[window], plan.config
    indices = launch.indices
    rows, heads, dim = query.shape
    assert (heads, step_key.shape[1], dim) == (shape.heads, shape.kv_heads, shape.dim), (query.shape, step_key.shape)
    assert key_cache.shape[1:] == (shape.page, shape.kv_heads, dim), key_cache.shape
    assert rows >= plan.num_rows, (rows, plan.num_rows)
    assert scale > 0, scale
    assert all(t.stride(-1) == 1 for t in (query, step_key, step_value, key_cache, value_cache)), "dim is not innermost"
    assert step_key.stride() == step_value.stride(), (step_key.stride(), step_value.stride())
    assert key_cache.stride() == value_cache.stride(), (key_cache.stride(), value_cache.stride())
    assert step_key.dtype == step_value.dtype == key_cache.dtype == value_cache.dtype, (step_key.dtype, key_cache.dtype)
    fp8 = key_cache.dtype == torch.float8_e4m3fn
    if fp8:
        assert key_scales is not None, "float8 keys and values come with scales"
        assert value_scales is not None, "float8 keys and values come with scales"
        step_key, step_value, key_cache, value_cache = (
            t.view(torch.uint8) for t in (step_key, step_value, key_cache, value_cache)
        )
    if out is None:
        out = torch.empty((rows, heads, dim), dtype=query.dtype, device=query.device)
    lse = torch.empty((rows, heads), dtype=torch.float32, device=query.device)
    if launch.grid_items:
        attend_kernel[(launch.grid_items * shape.kv_heads * shape.slices,)](
            query,
            step_key,
            step_value,
            key_cache,
            value_cache,
            out,
            lse,
            plan.partial_out,
            plan.partial_lse,
            indices.items,
            indices.pieces,
            indices.table,
            indices.positions,
            sinks if sinks is not None else lse,
            key_scales if key_scales is not None else lse,
            value_scales if value_scales is not None else lse,
            indices.num_items,
            window or NO_WINDOW,
            float(scale),
            float(softcap or 0.0),
            *query.stride()[:2],
            *step_key.stride()[:2],
            *key_cache.stride()[:3],
            *out.stride()[:2],
            NARROW=shape.narrow(config) if launch.narrow else 0,
            WIDE=shape.wide(config) if launch.wide else 0,
            KEYS=config.keys,
            HEADS=heads,
            GROUP=shape.group,
            SLICE=shape.slice_heads,
            DIM=dim,
            BLOCK_DIM=shape.tiles[0],
            REST_DIM=shape.tiles[1],
            PAGE=shape.page,
            CAPPED=softcap is not None,
            SINKS=sinks is not None,
            FP8=fp8,
            PRECISION="ieee",
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    if launch.grid_merges:
        merge_kernel[(launch.grid_merges, -(-heads // MERGE_HEADS))](
            out,
            lse,
            plan.partial_out,
            plan.partial_lse,
            indices.merge_rows,
            indices.merge_starts,
            indices.merge_partials,
            sinks if sinks is not None else lse,
            indices.num_merges,
            *out.stride()[:2],
            HEADS=heads,
            BLOCK_HEADS=MERGE_HEADS,
            DIM=dim,
            BLOCK_DIM=shape.block_dim,
            SINKS=sinks is not None,
            num_warps=4,
        )
    return out, lse
