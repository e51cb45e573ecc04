"""The attention function that transformers' models call by name, over a step's packed rows."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from engine.errors import UserError
from engine.kv_cache import KVCache
from engine.scheduler_output import KVSegment, SchedulerOutput
from kernels.attention import attend, merge_into
from kernels.row_attention import attend_rows

NAME = "trunkline"
UNBUILT = ("sliding_window", "softcap", "s_aux", "position_bias")


class StepAttention:
    """One step's attention: made once a step, run once a layer. Holds what all layers share."""

    def __init__(self, step: SchedulerOutput, cache: KVCache, dtype: torch.dtype, device: str) -> None:
        self.step = step
        self.cache = cache
        self.own_rows = torch.tensor([segment.row_start for segment in step.own], device=device)
        spans = [[segment.kv_start for segment in step.own], [segment.kv_end for segment in step.own]]
        self.own_spans = torch.tensor(spans, device=device)
        # Decoded tokens are written one by one, so they go in one indexed copy; chunks are copied as they lie.
        single = [write for write in step.writes if write.row_end - write.row_start == 1]
        self.single_rows = torch.tensor([write.row_start for write in single], device=device)
        self.single_slots = torch.tensor([write.slot_start for write in single], device=device)
        self.long_writes = [write for write in step.writes if write.row_end - write.row_start > 1]
        self.masks = [_tree_mask(labels.parents, dtype, device) for labels in step.labels]

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query (heads, rows, dim); key, value (kv_heads, rows, dim); returns (rows, heads, dim)."""
        step = self.step
        self._write(layer, key, value)
        out = query.new_empty(query.shape[1], query.shape[0], query.shape[2]).transpose(0, 1)
        lse = query.new_empty(query.shape[:2], dtype=torch.float32)
        for start, end in step.causal:
            rows = slice(start, end)
            out[:, rows], lse[:, rows] = attend(query[:, rows], key[:, rows], value[:, rows], scale, causal=True)
        for labels, mask in zip(step.labels, self.masks, strict=True):
            rows = slice(labels.row_start, labels.row_start + len(labels.parents))
            out[:, rows], lse[:, rows] = attend(query[:, rows], key[:, rows], value[:, rows], scale, mask=mask)
        if step.own:
            cache = self.cache.keys[layer], self.cache.values[layer]
            attend_rows(query, *cache, self.own_rows, self.own_spans, scale, out, lse)
        for segment in step.context:
            rows = slice(segment.row_start, segment.row_end)
            merge_into(out[:, rows], lse[:, rows], *self._segment(layer, segment, query, key, value, scale))
        return out.transpose(0, 1)

    def _write(self, layer: int, key: Tensor, value: Tensor) -> None:
        for write in self.long_writes:
            rows = slice(write.row_start, write.row_end)
            slots = slice(write.slot_start, write.slot_start + write.row_end - write.row_start)
            self.cache.write(layer, slots, key[:, rows], value[:, rows])
        if len(self.single_rows):
            self.cache.write(layer, self.single_slots, key[:, self.single_rows], value[:, self.single_rows])

    def _segment(
        self, layer: int, segment: KVSegment, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        span = slice(segment.kv_start, segment.kv_end)
        if not segment.in_step:
            key, value = self.cache.keys[layer], self.cache.values[layer]
        return attend(query[:, segment.row_start : segment.row_end], key[:, span], value[:, span], scale)


def _tree_mask(parents: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """(n, n): 0 where the row may read the column, itself or an ancestor; -inf elsewhere."""
    mask = torch.full((len(parents), len(parents)), -torch.inf, dtype=dtype)
    for index, parent in enumerate(parents):
        if parent >= 0:
            mask[index] = mask[parent]
        mask[index, index] = 0
    return mask.to(device)


def attention_function(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001  # never made: the step says what a row may read
    scaling: float | None = None,
    *,
    step: StepAttention,
    **extra: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: query (1, heads, rows, dim), key and value (1, kv_heads, rows, dim).

    Raises UserError for an argument that would change the result and is not built yet.
    """
    for argument in UNBUILT:
        if extra.get(argument) is not None:
            raise UserError(f"{type(module).__name__} asks for {argument}, which is not built yet")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = module.layer_idx  # type: ignore[assignment]
    return step.run(layer, query[0], key[0], value[0], scale)[None], None


AttentionInterface.register(NAME, attention_function)
