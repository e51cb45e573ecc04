"""A step's attention through the Triton kernels: in place of `engine.attention.StepAttention` on a GPU."""

import numpy as np
import torch
from torch import Tensor

from engine.kv_cache import KVCache
from engine.scheduler_output import SchedulerOutput
from kernels.prefix_attention import run
from kernels.prefix_plan import AttentionShape, PrefixPlan, plan


class TritonStepAttention:
    """One step's attention: made once a step, run once a layer. Holds what all layers share.

    Layers with one window share a plan, which is made when the first of them runs.
    """

    def __init__(self, step: SchedulerOutput, cache: KVCache, device: str) -> None:
        self.step = step
        self.cache = cache
        self.device = device
        kept = np.flatnonzero(step.slot_mapping >= 0)
        self.written_rows = torch.from_numpy(kept).to(device, non_blocking=True)
        self.written_slots = torch.from_numpy(step.slot_mapping[kept]).to(device, non_blocking=True)
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
        out: Tensor | None = None,
    ) -> Tensor:
        """As `engine.attention.StepAttention.run`."""
        assert self.cache.dtype == key.dtype, (self.cache.dtype, key.dtype)
        for cache, made in ((self.cache.keys[layer], key), (self.cache.values[layer], value)):
            cache[:, self.written_slots] = made[:, self.written_rows]
        if key.stride() != value.stride():
            key, value = torch.stack((key, value))  # the kernel addresses both alike
        keys, values = _paged(self.cache.keys[layer]), _paged(self.cache.values[layer])
        shape = AttentionShape(query.shape[0], key.shape[0], query.shape[2], keys.shape[1])
        planned = self._plans.get(window or None)
        if planned is None:
            planned = plan(self.step.segments, self.step.position_ids, shape, self.device, windows=(window or None,))
            self._plans[window or None] = planned
        assert planned.shape == shape, (planned.shape, shape)
        stores = (key.transpose(0, 1), value.transpose(0, 1), keys, values)
        limits = {"window": window or None, "softcap": softcap, "sinks": sinks}
        made, _ = run(planned, query.transpose(0, 1), *stores, scale, **limits)  # type: ignore[arg-type]
        return made if out is None else out.copy_(made)


def _paged(cache: Tensor) -> Tensor:
    """(kv_heads, slots, dim) seen as (blocks, page, kv_heads, dim).

    A run of slots is contiguous, so a page may be larger than a block of the pool: the fewer there are the shorter is
    the table.
    """
    kv_heads, slots, dim = cache.shape
    page = min(slots & -slots, 64)
    return cache.view(kv_heads, slots // page, page, dim).permute(1, 2, 0, 3)
