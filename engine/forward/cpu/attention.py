"""A step's attention through the CPU's compiled loops, or through torch where they are not compiled."""

from functools import cached_property

import torch
from torch import Tensor

from engine.forward.kv_cache import KVCache
from engine.forward.step_attention import Scoring
from engine.forward.step_inputs import StepInputs
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.cpu.attention.attention_plan import AttentionPlan, plan_attention
from kernels.cpu.attention.cpu_attention import cpu_attention, cpu_attention_takes, replan
from kernels.cpu.attention.kv_write import reslot, write_kv
from kernels.cpu.attention.ordered_attention import ordered_attention, replan_ordered
from kernels.cpu.language.openmp import Recording
from kernels.cpu.matmul.recorded_adapters import change_adapters
from kernels.paged_adapters import AdapterRuns
from kernels.reference.segment_attention import segment_attention
from kernels.segments import Ints, Segments


class CpuAttention:
    """The `AttentionBackend` of a CPU; `in_order`: what a row attends is the same to the last bit in any step."""

    def __init__(self, cache: KVCache, *, in_order: bool = False) -> None:
        self._cache = cache
        self._in_order = in_order

    def prepare(self, step: SchedulerOutput, inputs: StepInputs) -> "CpuStepAttention":
        return CpuStepAttention(step, inputs, self._cache, in_order=self._in_order)


class CpuStepAttention:
    """A `StepAttention` whose query may be of the asked rows alone; keys and values are of all rows always.

    `adapters` are those that all rows run with, `asked_adapters` of the asked rows alone.
    """

    def __init__(self, step: SchedulerOutput, inputs: StepInputs, cache: KVCache, *, in_order: bool = False) -> None:
        self.cache = cache
        self.asked_rows = inputs.asked_rows
        self.adapters: AdapterRuns | None = None
        self.asked_adapters: AdapterRuns | None = None
        self._step = step
        self._slots = inputs.slots
        self._in_order = in_order
        self._plan = self._planned(step.position_ids, step.segments)

    @cached_property
    def _asked_plan(self) -> AttentionPlan:
        rows = self._step.asked_rows
        return self._planned(self._step.position_ids[rows], self._step.segments.for_rows(rows))

    def _planned(self, positions: Ints, segments: Segments) -> AttentionPlan:
        num_kv_heads, threads = self.cache.num_kv_heads, torch.get_num_threads()
        return plan_attention(positions, segments, num_kv_heads, threads, in_order=self._in_order)

    def repeat(self, recording: Recording) -> None:
        """Runs again what another step of as many rows recorded, for this step; no layer's query was cut to asked rows.

        The caller answers for all else that was recorded: see `Recording`.
        """
        reslot(recording, self._slots)
        if self.adapters is not None:
            change_adapters(recording, self.adapters)
        (replan_ordered if self._in_order else replan)(recording, self._plan)
        recording.run()

    def run(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, out: Tensor | None = None
    ) -> Tensor:
        """As `StepAttention.run`, of the rows that the query has.

        `out` (rows, heads, dim), if given, is written and returned; it may be of another dtype than the query.
        """
        kept, own = self.cache.of_layer(layer, key, value), self.cache.own(key.shape[1])
        write_kv((key, value), self._slots, kept, own)
        out = query.new_empty(query.shape[1], query.shape[0], query.shape[2]) if out is None else out
        attend = cpu_attention if cpu_attention_takes(query, kept[0]) else segment_attention
        if self._in_order:
            attend = ordered_attention
        return attend(
            self._plan if query.shape[1] == key.shape[1] else self._asked_plan,
            query.transpose(0, 1),
            kept,
            own,
            scoring.scale,
            out,
            window=scoring.window,
            softcap=scoring.softcap or 0.0,
            sinks=scoring.sinks if scoring.sinks is None else scoring.sinks.float().contiguous(),
        )
