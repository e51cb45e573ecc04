"""The attention function that transformers' models call by name, over a step's packed rows."""

from types import EllipsisType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from engine.errors import UserError
from engine.kv_cache import KVCache
from engine.scheduler_output import SchedulerOutput
from engine.windows import StepReads
from kernels.attention import add_sinks, attend, merge_into
from kernels.row_attention import attend_rows

NAME = "trunkline"


class StepAttention:
    """One step's attention: made once a step, run once a layer. Holds what all layers share."""

    def __init__(self, step: SchedulerOutput, cache: KVCache, dtype: torch.dtype, device: str) -> None:
        self.step = step
        self.cache = cache
        self.own_rows = torch.tensor([segment.row_start for segment in step.own], device=device)
        self.reads = StepReads(step, dtype, device)
        # Decoded tokens are written one by one, so they go in one indexed copy; chunks are copied as they lie.
        single = [write for write in step.writes if write.row_end - write.row_start == 1]
        self.single_rows = torch.tensor([write.row_start for write in single], device=device)
        self.single_slots = torch.tensor([write.slot_start for write in single], device=device)
        self.long_writes = [write for write in step.writes if write.row_end - write.row_start > 1]

    def run(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        *,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """query (heads, rows, dim); key, value (kv_heads, rows, dim); returns (rows, heads, dim).

        `window` and `softcap` are those of `engine.windows` and `kernels.soft_cap`; `sinks` (heads,) is one more logit.
        """
        reads = self.reads.within(window)
        self._write(layer, key, value)
        out = query.new_empty(query.shape[1], query.shape[0], query.shape[2]).transpose(0, 1)
        lse = query.new_empty(query.shape[:2], dtype=torch.float32)
        for start, end in reads.causal:
            rows = slice(start, end)
            out[:, rows], lse[:, rows] = attend(
                query[:, rows], key[:, rows], value[:, rows], scale, causal=True, softcap=softcap
            )
        for start, end, mask in reads.labels:
            rows = slice(start, end)
            out[:, rows], lse[:, rows] = attend(
                query[:, rows], key[:, rows], value[:, rows], scale, mask=mask, softcap=softcap
            )
        if len(self.own_rows):
            cache = self.cache.keys[layer], self.cache.values[layer]
            attend_rows(query, *cache, self.own_rows, reads.own, scale, out, lse, softcap)
        for segment, segment_mask in reads.context:
            rows, span = slice(segment.row_start, segment.row_end), slice(segment.kv_start, segment.kv_end)
            keys, values = (key, value) if segment.in_step else (self.cache.keys[layer], self.cache.values[layer])
            part = attend(query[:, rows], keys[:, span], values[:, span], scale, mask=segment_mask, softcap=softcap)
            merge_into(out[:, rows], lse[:, rows], *part)
        if sinks is not None:
            add_sinks(out, lse, sinks)
        return out.transpose(0, 1)

    def _write(self, layer: int, key: Tensor, value: Tensor) -> None:
        for write in self.long_writes:
            rows = slice(write.row_start, write.row_end)
            slots = slice(write.slot_start, write.slot_start + write.row_end - write.row_start)
            self.cache.write(layer, slots, key[:, rows], value[:, rows])
        if len(self.single_rows):
            self.cache.write(layer, self.single_slots, key[:, self.single_rows], value[:, self.single_rows])


def attention_function(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    step: StepAttention,
    sliding_window: int | EllipsisType | None = ...,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: query (1, heads, rows, dim), key and value (1, kv_heads, rows, dim).

    Raises UserError for an argument that would change the result and is not served.
    """
    # transformers makes no mask for an attention function of ours: the step says what a row may read.
    if attention_mask is not None or extra.get("position_bias") is not None:
        raise UserError("adds a mask or bias of its own to attention, which is not served")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = module.layer_idx  # type: ignore[assignment]
    window = _window(module) if isinstance(sliding_window, EllipsisType) else sliding_window
    dim, value_dim = key.shape[-1], value.shape[-1]
    if value_dim < dim:
        value = F.pad(value, (0, dim - value_dim))
    out = step.run(layer, query[0], key[0], value[0], scale, window=window, softcap=softcap, sinks=s_aux)
    return out[None, ..., :value_dim], None


def _window(module: nn.Module) -> int | None:
    """Of an attention that has a window but does not pass it on (Qwen2-MoE, PhiMoE); the probe holds it to eager."""
    values = vars(module)
    if "sliding_window" not in values:
        values = vars(values["config"]) if "config" in values else {}
        if values.get("layer_types"):
            return None
    window: int | None = values.get("sliding_window")
    return window


AttentionInterface.register(NAME, attention_function)
