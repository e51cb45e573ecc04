"""A step's attention through the Triton kernels: in place of `engine.forward.attention.StepAttention` on a GPU."""

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor

from engine.forward.kv_cache import KVCache
from engine.forward.step_inputs import StepInputs
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.attention_inputs import AttentionInputs
from kernels.gpu.attention.attention_shape import AttentionShape
from kernels.gpu.attention.kv_write import HeadNorms, rope_write
from kernels.gpu.attention.launch_tables import LaunchTables, launch_tables
from kernels.gpu.attention.prefix_attention import prefix_shared_attention
from kernels.gpu.tuning.attention_config import decode_config
from kernels.kv_format import kv_format_of


class TritonStepAttention:
    """One step's attention: made once a step, run once a layer. Holds what all layers share.

    Layers with one window share their launches' tables, which are made when the first of them runs. `room` is for a
    captured graph: the tables then take other steps, whose rows are as many.
    """

    def __init__(self, step: SchedulerOutput, inputs: StepInputs, cache: KVCache, *, room: bool = False) -> None:
        self.step = step
        self.cache = cache
        self.slots = inputs.slots
        self.asked_rows = inputs.asked_rows
        self._room = room
        self._tables: dict[int | None, LaunchTables] = {}

    @property
    def tables(self) -> Iterable[LaunchTables]:
        """Those of each window that a layer has run with."""
        return self._tables.values()

    def replan(self, step: SchedulerOutput) -> None:
        """Overwrites the tables with those of `step`. Raises CapacityError where there is no room for one."""
        for tables in self._tables.values():
            tables.refill(step.segments, step.position_ids, ahead=step.ahead)
        self.step = step

    def _make_tables(self, shape: AttentionShape, window: int | None) -> LaunchTables:
        device = self.slots.device
        return launch_tables(
            self.step.segments,
            self.step.position_ids,
            shape,
            device,
            windows=(window,),
            config=decode_config(device, shape.dim) if self._room else None,
            room=self._room,
            ahead=self.step.ahead,
        )

    @cached_property
    def _written(self) -> tuple[Tensor, Tensor]:
        """Rows whose KV is kept, and where."""
        rows = torch.from_numpy((self.step.slot_mapping >= 0).nonzero()[0]).to(self.slots.device)
        return rows, self.slots[rows]

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
        rotary: tuple[Tensor, Tensor] | None = None,
        norms: HeadNorms | None = None,
    ) -> Tensor:
        """As `engine.forward.attention.StepAttention.run`; query and key have yet to go through `norms`, and through
        `rotary`, cos and sin (rows, dim).
        """
        keys, values = _paged(self.cache.keys[layer]), _paged(self.cache.values[layer])
        query, key, value = (made.transpose(0, 1) for made in (query, key, value))
        if rotary is not None:
            query, key, value = rope_write(query, key, value, *rotary, self.slots, keys, values, norms=norms)
        else:
            self._write(layer, key, value)
        if key.stride() != value.stride():
            key, value = torch.stack((key, value))  # the kernel addresses both alike
        shape = AttentionShape(query.shape[1], key.shape[1], query.shape[2], keys.shape[1])
        window = window or None  # a model's configuration may say 0 for none
        if window not in self._tables:
            self._tables[window] = self._make_tables(shape, window)
        tables = self._tables[window]
        assert tables.shape == shape, (tables.shape, shape)
        inputs = AttentionInputs(query, key, value, keys, values)
        made, _ = prefix_shared_attention(tables, inputs, scale, window=window, softcap=softcap, sinks=sinks, out=out)
        return made

    def _write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """(rows, kv_heads, dim) into the cache, those rows that a later step reads."""
        assert self.cache.kv_format == kv_format_of(key.dtype), (self.cache.kv_format, key.dtype)
        rows, slots = self._written
        for cache, made in ((self.cache.keys[layer], key), (self.cache.values[layer], value)):
            cache[:, slots] = made[rows].transpose(0, 1)


def _paged(cache: Tensor) -> Tensor:
    """(kv_heads, slots, dim) seen as (blocks, page, kv_heads, dim).

    A run of slots is contiguous, so a page may be larger than a block of the pool: the fewer there are the shorter is
    the table.
    """
    kv_heads, slots, dim = cache.shape
    page = min(slots & -slots, 64) or 16
    return cache.view(kv_heads, slots // page, page, dim).permute(1, 2, 0, 3)
