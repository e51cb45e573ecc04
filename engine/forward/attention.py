"""The attention function that transformers' models call by name, over a step's packed rows."""

from functools import cached_property
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from engine.errors import UserError
from engine.forward.kv_cache import KVCache
from engine.forward.step_inputs import StepInputs
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.backend import Backend
from kernels.cpu.attention.attention_plan import AttentionPlan, plan_attention
from kernels.cpu.attention.cpu_attention import cpu_attention, cpu_attention_takes, replan
from kernels.cpu.attention.kv_write import reslot, write_kv
from kernels.cpu.language.openmp import Recording
from kernels.reference.segment_attention import segment_attention
from kernels.segments import Ints, Segments

if TYPE_CHECKING:
    from engine.forward.gpu.attention import TritonStepAttention

NAME = "trunkline"


class StepAttention:
    """One step's attention: planned once a step, run once a layer.

    `asked_rows` (asked,) are those whose hidden states are read behind the last layer.
    """

    def __init__(self, step: SchedulerOutput, inputs: StepInputs, cache: KVCache) -> None:
        self.step = step
        self.cache = cache
        self.slots = inputs.slots
        self.asked_rows = inputs.asked_rows
        self.plan = self._plan(step.position_ids, step.segments)

    @cached_property
    def asked_plan(self) -> AttentionPlan:
        """What the asked rows alone read."""
        rows = self.step.asked_rows
        return self._plan(self.step.position_ids[rows], self.step.segments.for_rows(rows))

    def _plan(self, positions: Ints, segments: Segments) -> AttentionPlan:
        return plan_attention(positions, segments, self.cache.num_kv_heads, torch.get_num_threads())

    def rerun(self, recording: Recording) -> None:
        """Of another step with as many rows, none of which is left out: its loops again, for this step."""
        reslot(recording, self.slots)
        replan(recording, self.plan)
        recording.run()

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
        out: Tensor | None = None,
    ) -> Tensor:
        """query (heads, rows, dim); key, value (kv_heads, rows, dim); returns (rows, heads, dim).

        The query may be of the asked rows alone, and so is then what is returned. A row reads no more than `window`
        tokens, itself included; scores are capped by `softcap`; `sinks` (heads,) is one more logit. `out`, if given, is
        written and returned; it may be of another dtype than the query.
        """
        kept, own = (self.cache.keys[layer], self.cache.values[layer]), self.cache.own(key.shape[1])
        write_kv((key, value), self.slots, kept, own)
        out = query.new_empty(query.shape[1], query.shape[0], query.shape[2]) if out is None else out
        attend = cpu_attention if cpu_attention_takes(query, kept[0]) else segment_attention
        sinks = sinks if sinks is None else sinks.float().contiguous()
        return attend(
            self.plan if query.shape[1] == key.shape[1] else self.asked_plan,
            query.transpose(0, 1),
            kept,
            own,
            scale,
            out,
            window=window or None,
            softcap=softcap or 0.0,
            sinks=sinks,
        )


def step_attention(backend: Backend) -> type["StepAttention"] | type["TritonStepAttention"]:
    if backend == "torch":
        return StepAttention
    from engine.forward.gpu.attention import TritonStepAttention  # where Triton is not installed, nothing asks for it

    return TritonStepAttention


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
    window = window_of(module) if isinstance(sliding_window, EllipsisType) else sliding_window
    dim, value_dim = key.shape[-1], value.shape[-1]
    if value_dim < dim:
        value = F.pad(value, (0, dim - value_dim))
    out = step.run(layer, query[0], key[0], value[0], scale, window=window, softcap=softcap, sinks=s_aux)
    return out[None, ..., :value_dim], None


def window_of(module: nn.Module) -> int | None:
    """Of an attention that has a window but does not pass it on (Qwen2-MoE, PhiMoE); the probe holds it to eager."""
    values = vars(module)
    if "sliding_window" not in values:
        values = vars(values["config"]) if "config" in values else {}
        if values.get("layer_types"):
            return None
    window: int | None = values.get("sliding_window")
    return window


AttentionInterface.register(NAME, attention_function)
