"""A step's attention through the Triton kernels."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from engine.forward.kv_cache import KVCache
from engine.forward.step_attention import Scoring
from engine.forward.step_inputs import StepInputs, to_device
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.attention_inputs import AttentionInputs
from kernels.gpu.attention.attention_shape import AttentionShape
from kernels.gpu.attention.kv_write import HeadNorms, rope_write
from kernels.gpu.attention.launch_tables import LaunchTables, launch_tables
from kernels.gpu.attention.prefix_attention import prefix_shared_attention
from kernels.gpu.attention.room import Room
from kernels.gpu.layer.e4m3 import E4M3_MAX
from kernels.gpu.tuning.tuned import DECODE, choose_config
from kernels.kv_format import kv_format_of
from kernels.paged_adapters import AdapterRuns


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """What queries and keys go through before they meet: RMS norms, where the model has them, then cos and sin
    (rows, rotary dim).
    """

    cos: Tensor
    sin: Tensor
    norms: HeadNorms | None = None


class GpuAttention:
    """The `AttentionBackend` of a GPU."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._room = Room()

    def prepare(self, step: SchedulerOutput, inputs: StepInputs) -> "GpuStepAttention":
        return GpuStepAttention(step, inputs, self._cache)

    def prepare_to_repeat(self, step: SchedulerOutput, inputs: StepInputs) -> "GpuStepAttention":
        """One that `replan` makes another step's; its layers rotate, for where `run` writes is settled on the host."""
        return GpuStepAttention(step, inputs, self._cache, self._room)


class GpuStepAttention:
    """A `StepAttention` that also rotates, in the launch that writes KV.

    Layers with one window share their launches' tables, which are made when the first of them runs. Those that have
    `room` can become another step's. `adapters` are those that all rows run with, `asked_adapters` those of the asked
    rows.
    """

    def __init__(self, step: SchedulerOutput, inputs: StepInputs, cache: KVCache, room: Room | None = None) -> None:
        self.asked_rows = inputs.asked_rows
        self.adapters: AdapterRuns | None = None
        self.asked_adapters: AdapterRuns | None = None
        self._step = step
        self._inputs = inputs
        self._cache = cache
        self._room = room
        self._tables: dict[int | None, LaunchTables] = {}

    def replan(self, step: SchedulerOutput) -> None:
        """Overwrites the tables with those of `step`, in the memory that captured launches read.

        Raises CapacityError where there is no room for one.
        """
        for tables in self._tables.values():
            tables.refill(step.segments, step.position_ids, ahead=step.ahead)
        self._step = step

    def move_rows(self) -> None:
        """Copies the inputs' positions into the tables: all that changes of them where segments do not."""
        for tables in self._tables.values():
            tables.move_rows(self._inputs.position_ids)

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """As `StepAttention.run`."""
        assert self._room is None, "what this launches writes the first step's rows for ever"
        kept = self._cache.of_layer(layer, key, value)
        key, value = (_as_kept(*one) for one in zip((key, value), self._cache.scales_of(layer), strict=True))
        assert self._cache.kv_format == kv_format_of(key.dtype), (self._cache.kv_format, key.dtype)
        rows, slots = self._written
        for cache, made in zip(kept, (key, value), strict=True):
            _bits(cache)[:, slots] = _bits(made)[:, rows]
        query, key, value = (made.transpose(0, 1) for made in (query, key, value))
        if key.stride() != value.stride():
            key, value = torch.stack((key, value))  # the kernel addresses both alike
        stores = (_paged(kept[0]), _paged(kept[1]))
        return self._attend(AttentionInputs(query, key, value, *stores, *self._cache.scales_of(layer)), scoring)

    def run_rotated(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, rotation: Rotation
    ) -> Tensor:
        """As `run`, of a query and a key that have yet to go through `rotation`."""
        keys, values = map(_paged, self._cache.of_layer(layer, key, value))
        query, key, value = (made.transpose(0, 1) for made in (query, key, value))
        angles, slots = (rotation.cos, rotation.sin), self._inputs.slots
        scales = self._cache.scales_of(layer)
        key_scales, value_scales = scales
        query, key, value = rope_write(
            query, key, value, *angles, slots, keys, values, key_scales, value_scales, rotation.norms
        )
        return self._attend(AttentionInputs(query, key, value, keys, values, *scales), scoring)

    def _attend(self, inputs: AttentionInputs, scoring: Scoring) -> Tensor:
        query, key, window = inputs.query, inputs.step_key, scoring.window
        _, heads, dim = query.shape
        shape = AttentionShape(heads, key.shape[1], dim, inputs.key_cache.shape[1], query.itemsize)
        if window not in self._tables:
            self._tables[window] = self._make_tables(shape, window)
        tables = self._tables[window]
        assert tables.shape == shape, (tables.shape, shape)
        made, _ = prefix_shared_attention(
            tables, inputs, scoring.scale, window=window, softcap=scoring.softcap, sinks=scoring.sinks
        )
        return made

    def _make_tables(self, shape: AttentionShape, window: int | None) -> LaunchTables:
        device = self._inputs.slots.device
        return launch_tables(
            self._step.segments,
            self._step.position_ids,
            shape,
            device,
            windows=(window,),
            config=choose_config(device, shape.room, DECODE) if self._room is not None else None,
            room=self._room,
            ahead=self._step.ahead,
        )

    @cached_property
    def _written(self) -> tuple[Tensor, Tensor]:
        """Rows whose KV is kept, and where."""
        slots = self._inputs.slots
        rows = to_device(np.flatnonzero(self._step.slot_mapping >= 0), str(slots.device))
        return rows, slots[rows]


def _as_kept(made: Tensor, scales: Tensor | None) -> Tensor:
    """Keys or values (kv_heads, rows, dim) as a cache with these scales keeps them, saturated."""
    if scales is None:
        return made
    largest = E4M3_MAX.value
    return (made.float() / scales[:, None, None]).clamp(-largest, largest).to(torch.float8_e4m3fn).contiguous()


def _bits(tensor: Tensor) -> Tensor:
    """What can be indexed: numbers of 8 bits as bytes."""
    return tensor.view(torch.uint8) if tensor.itemsize == 1 else tensor


def _paged(cache: Tensor) -> Tensor:
    """(kv_heads, slots, dim) seen as (blocks, page, kv_heads, dim).

    A run of slots is contiguous, so a page may be larger than a block of the pool: the fewer there are the shorter is
    the table.
    """
    kv_heads, slots, dim = cache.shape
    page = min(slots & -slots, 64) or 16
    return cache.view(kv_heads, slots // page, page, dim).permute(1, 2, 0, 3)
