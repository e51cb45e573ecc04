"""Attention over shared prefixes on a GPU: `launch_tables` once a step, `prefix_shared_attention` once a layer.

It launches two kernels, waits for nothing and can be captured in a CUDA graph.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.attention_inputs import AttentionInputs
from kernels.gpu.attention.attention_shape import AttentionShape
from kernels.gpu.attention.kernel_arguments import (
    AttendSizes,
    AttendStrides,
    HeadRows,
    KeyValue,
    MergeSizes,
    Reads,
    Results,
    TileRows,
)
from kernels.gpu.attention.launch_tables import LaunchTables, WindowTables
from kernels.gpu.attention.merge_kernel import merge_kernel
from kernels.gpu.attention.prefix_attention_kernel import attend_kernel
from kernels.gpu.tuning.device_limits import processors_of
from kernels.gpu.tuning.launch import launch
from kernels.segments import reach


class MergeTile(NamedTuple):
    """Heads of a program, and partial results that it reads at a time: eight in all, which fill four warps at 128
    dimensions.
    """

    heads: int
    partials: int


# Merging is a pass over float32 partials. Where rows are few a program has one head, so that there are more programs,
# and more partials at a time: one row over 32,000 keys has dozens, and each turn of the loop waits for memory.
WIDE_MERGE, DEEP_MERGE = MergeTile(8, 1), MergeTile(1, 8)


def merge_tile(rows: int, heads: int, processors: int) -> MergeTile:
    """The tile for so many rows to merge on a device."""
    return WIDE_MERGE if rows * -(-heads // WIDE_MERGE.heads) >= processors else DEEP_MERGE


def prefix_shared_attention(
    tables: LaunchTables,
    inputs: AttentionInputs,
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`prefix_shared_attention_reference` on the GPU, for the step and the windows of `tables`.

    `scale` > 0; `out`, if given, is written and returned, in any strides but 1 for the last.
    """
    _check(tables, inputs)
    assert scale > 0, scale
    query = inputs.query
    if out is None:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
    results = Results(out, lse, tables.partials)
    launched = tables.by_window[window]
    if launched.grid_items:
        _attend(tables, launched, inputs, results, scale, window, softcap, sinks)
    if launched.grid_merges:
        _merge(tables.shape, launched, results, sinks)
    return out, lse


def _check(tables: LaunchTables, inputs: AttentionInputs) -> None:
    shape, query = tables.shape, inputs.query
    heads = query.shape[1], inputs.step_key.shape[1], query.shape[2]
    assert heads == (shape.heads, shape.kv_heads, shape.dim), heads
    assert inputs.key_cache.shape[1:] == (shape.page, shape.kv_heads, shape.dim), inputs.key_cache.shape
    assert len(query) >= tables.num_rows, (len(query), tables.num_rows)


def _attend(
    tables: LaunchTables,
    launched: WindowTables,
    inputs: AttentionInputs,
    results: Results,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> None:
    shape, config = tables.shape, tables.config
    stores = [store.view(torch.uint8) if inputs.is_fp8 else store for store in inputs.keys_and_values]
    block_dim, rest_dim = shape.tiles
    unread = results.lse_ptr  # in place of a tensor that is not there
    launch(
        attend_kernel,
        (launched.grid_items * shape.kv_heads * shape.slices,),
        Reads(inputs.query, KeyValue(*stores[:2]), KeyValue(*stores[2:])),
        results,
        launched.items,
        unread if sinks is None else sinks,
        KeyValue(*(unread if scales is None else scales for scales in (inputs.key_scales, inputs.value_scales))),
        launched.num_items,
        reach(window),
        float(scale),
        float(softcap or 0.0),
        AttendStrides(
            *inputs.query.stride()[:2], *stores[0].stride()[:2], *stores[2].stride()[:3], *results.out_ptr.stride()[:2]
        ),
        TileRows(
            SMALL=shape.small_rows(config) if launched.has_small else 0,
            LARGE=shape.large_rows(config) if launched.has_large else 0,
        ),
        AttendSizes(
            HEADS=shape.heads,
            GROUP=shape.group,
            SLICE=shape.slice_heads,
            DIM=shape.dim,
            BLOCK_DIM=block_dim,
            REST_DIM=rest_dim,
            PAGE=shape.page,
            KEYS=config.keys,
            CAPPED=softcap is not None,
            SINKS=sinks is not None,
            FP8=inputs.is_fp8,
        ),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _merge(shape: AttentionShape, launched: WindowTables, results: Results, sinks: Tensor | None) -> None:
    tile = merge_tile(launched.grid_merges, shape.heads, processors_of(results.lse_ptr.device))
    launch(
        merge_kernel,
        (launched.grid_merges, -(-shape.heads // tile.heads)),
        HeadRows.of(results.out_ptr),
        results.lse_ptr,
        results.partials,
        launched.merges,
        results.lse_ptr if sinks is None else sinks,
        MergeSizes(
            HEADS=shape.heads,
            BLOCK_HEADS=tile.heads,
            BLOCK_PARTIALS=tile.partials,
            DIM=shape.dim,
            BLOCK_DIM=shape.block_dim,
            SINKS=sinks is not None,
        ),
        num_warps=4,
    )
