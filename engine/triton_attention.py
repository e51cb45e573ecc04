"""A step's attention through the Triton kernels: in place of `engine.attention.StepAttention` on a GPU."""

from collections.abc import Iterator

import torch
from torch import Tensor

from engine.kv_cache import KVCache
from engine.scheduler_output import KVSegment, LabelRows, SchedulerOutput
from kernels.prefix_attention import run
from kernels.prefix_plan import AttentionShape, PrefixPlan, plan
from kernels.segments import Segments


class TritonStepAttention:
    """One step's attention: made once a step, run once a layer. Holds what all layers share.

    Layers with one window share a plan, which is made when the first of them runs.
    """

    def __init__(self, step: SchedulerOutput, cache: KVCache, dtype: torch.dtype, device: str) -> None:
        assert cache.keys[0].dtype == dtype, (cache.keys[0].dtype, dtype)
        self.step = step
        self.cache = cache
        self.device = device
        self.segments = step_segments(step)
        rows = [row for write in step.writes for row in range(write.row_start, write.row_end)]
        slots = [
            write.slot_start + row - write.row_start
            for write in step.writes
            for row in range(write.row_start, write.row_end)
        ]
        self.written_rows = torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)
        self.written_slots = torch.tensor(slots, dtype=torch.int64).to(device, non_blocking=True)
        self._plans: dict[int | None, PrefixPlan] = {}

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
        """query (heads, rows, dim); key, value (kv_heads, rows, dim); returns (rows, heads, dim)."""
        if len(self.written_rows):
            self.cache.write(layer, self.written_slots, key[:, self.written_rows], value[:, self.written_rows])
        if key.stride() != value.stride():
            key, value = torch.stack((key, value))  # the kernel addresses both alike
        keys, values = _paged(self.cache.keys[layer]), _paged(self.cache.values[layer])
        shape = AttentionShape(query.shape[0], key.shape[0], query.shape[2], keys.shape[1])
        planned = self._plans.get(window or None)
        if planned is None:
            planned = plan(self.segments, self.step.position_ids, shape, self.device, windows=(window or None,))
            self._plans[window or None] = planned
        assert planned.shape == shape, (planned.shape, shape)
        stores = (key.transpose(0, 1), value.transpose(0, 1), keys, values)
        out, _ = run(
            planned, query.transpose(0, 1), *stores, scale, window=window or None, softcap=softcap, sinks=sinks
        )
        return out


def _paged(cache: Tensor) -> Tensor:
    """(kv_heads, slots, dim) seen as (blocks, page, kv_heads, dim).

    A run of slots is contiguous, so a page may be larger than a block of the pool: the fewer there are the shorter is
    the table.
    """
    kv_heads, slots, dim = cache.shape
    page = min(slots & -slots, 64)
    return cache.view(kv_heads, slots // page, page, dim).permute(1, 2, 0, 3)


def step_segments(step: SchedulerOutput) -> Segments:
    """Everything that rows of `step` read, by one rule: causal parts and label trees are segments within the step."""
    positions = step.position_ids
    causal = [KVSegment(start, end, start, end, int(positions[start]), in_step=True) for start, end in step.causal]
    labels = [segment for rows in step.labels for segment in _label_segments(rows, positions.tolist())]
    return Segments.of([*causal, *labels, *step.own, *step.context])


def _label_segments(labels: LabelRows, positions: list[int]) -> Iterator[KVSegment]:
    """Each token is read by itself and its descendants, which lie in one run of rows or in several."""
    readers: list[list[int]] = [[] for _ in labels.parents]
    for index in range(len(labels.parents)):
        above = index
        while above >= 0:
            readers[above].append(labels.row_start + index)
            above = labels.parents[above]
    for index, rows in enumerate(readers):
        key = labels.row_start + index
        first = rows[0]
        for row, following in zip(rows, [*rows[1:], -1], strict=True):
            if following != row + 1:
                yield KVSegment(first, row + 1, key, key + 1, positions[key], in_step=True)
                first = following
