"""A step's attention through the Triton kernels."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from engine.forward.kv_cache import KVCache
from engine.forward.step_attention import Scoring
from engine.forward.step_inputs import StepInputs
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.gpu.e4m3 import E4M3_MAX
from kernels.gpu.kv_write import HeadNorms, rope_write
from kernels.gpu.prefix_attention import run
from kernels.gpu.prefix_plan import AttentionShape, PrefixPlan, plan
from kernels.gpu.tuning import decode_config
from kernels.kv_format import kv_format_of


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

    def prepare(self, step: SchedulerOutput, inputs: StepInputs) -> "GpuStepAttention":
        return GpuStepAttention(step, inputs, self._cache)

    def prepare_to_repeat(self, step: SchedulerOutput, inputs: StepInputs) -> "GpuStepAttention":
        """One that `replan` makes another step's; its layers rotate, for where `run` writes is settled on the host."""
        return GpuStepAttention(step, inputs, self._cache, room=True)


class GpuStepAttention:
    """A `StepAttention` that also rotates, in the launch that writes KV.

    Layers with one window share a plan, which is made when the first of them runs. `room` leaves the plans room for
    those of other steps.
    """

    def __init__(self, step: SchedulerOutput, inputs: StepInputs, cache: KVCache, *, room: bool = False) -> None:
        self.asked_rows = inputs.asked_rows
        self._step = step
        self._inputs = inputs
        self._cache = cache
        self._room = room
        self._plans: dict[int | None, PrefixPlan] = {}

    def replan(self, step: SchedulerOutput) -> None:
        """Overwrites the plans with those of `step`, in the memory that captured launches read.

        Raises CapacityError where there is no room for one.
        """
        for window, planned in self._plans.items():
            self._planned(step, planned.shape, window, planned)
        self._step = step

    def place_rows(self) -> None:
        """Copies the positions of the inputs into the plans: all that changes of a plan where segments do not."""
        positions = self._inputs.position_ids
        for planned in self._plans.values():
            for launch in planned.launches.values():
                launch.indices.positions[: len(positions)].copy_(positions)

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """As `StepAttention.run`."""
        assert not self._room, "what this launches writes the first step's rows for ever"
        kept = self._cache.of_layer(layer, key, value)
        key, value = (_as_kept(*one) for one in zip((key, value), self._cache.scales_of(layer), strict=True))
        assert self._cache.kv_format == kv_format_of(key.dtype), (self._cache.kv_format, key.dtype)
        rows, slots = self._written
        for cache, made in zip(kept, (key, value), strict=True):
            _bits(cache)[:, slots] = _bits(made)[:, rows]
        query, key, value = (made.transpose(0, 1) for made in (query, key, value))
        if key.stride() != value.stride():
            key, value = torch.stack((key, value))  # the kernel addresses both alike
        return self._attend(layer, query, (key, value), (_paged(kept[0]), _paged(kept[1])), scoring)

    def run_rotated(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, rotation: Rotation
    ) -> Tensor:
        """As `run`, of a query and a key that have yet to go through `rotation`."""
        keys, values = map(_paged, self._cache.of_layer(layer, key, value))
        query, key, value = (made.transpose(0, 1) for made in (query, key, value))
        angles, slots = (rotation.cos, rotation.sin), self._inputs.slots
        key_scales, value_scales = self._cache.scales_of(layer)
        query, key, value = rope_write(
            query, key, value, *angles, slots, keys, values, key_scales, value_scales, rotation.norms
        )
        return self._attend(layer, query, (key, value), (keys, values), scoring)

    def _attend(
        self, layer: int, query: Tensor, own: tuple[Tensor, Tensor], paged: tuple[Tensor, Tensor], scoring: Scoring
    ) -> Tensor:
        """query (rows, heads, dim); own (rows, kv_heads, dim), the step's keys and values; paged, the cache's."""
        window = scoring.window
        shape = AttentionShape(query.shape[1], own[0].shape[1], query.shape[2], paged[0].shape[1])
        planned = self._plans.get(window)
        if planned is None:
            planned = self._plans[window] = self._planned(self._step, shape, window)
        assert planned.shape == shape, (planned.shape, shape)
        key_scales, value_scales = self._cache.scales_of(layer)
        made, _ = run(
            planned,
            query,
            *own,
            *paged,
            scoring.scale,
            window=window,
            softcap=scoring.softcap,
            sinks=scoring.sinks,
            key_scales=key_scales,
            value_scales=value_scales,
        )
        return made

    def _planned(
        self, step: SchedulerOutput, shape: AttentionShape, window: int | None, into: PrefixPlan | None = None
    ) -> PrefixPlan:
        device = self._inputs.slots.device
        return plan(
            step.segments,
            step.position_ids,
            shape,
            device,
            windows=(window,),
            config=decode_config(device, shape.dim) if self._room else None,
            room=self._room,
            into=into,
            ahead=step.ahead,
        )

    @cached_property
    def _written(self) -> tuple[Tensor, Tensor]:
        """Rows whose KV is kept, and where."""
        slots = self._inputs.slots
        rows = torch.from_numpy((self._step.slot_mapping >= 0).nonzero()[0]).to(slots.device)
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
