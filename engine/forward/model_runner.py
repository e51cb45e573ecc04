"""Runs a scheduler's step on a model."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.forward.attention_backend import attention_backend
from engine.forward.cpu.attention import CpuAttention
from engine.forward.cpu.fused_body import FusedBody
from engine.forward.cpu.loop_replay import LoopReplay
from engine.forward.forward_output import Chosen, Forward, are_all
from engine.forward.kv_cache import KVCache
from engine.forward.loaded_model import LoadedModel
from engine.forward.runner_adapters import RunnerAdapters
from engine.forward.step_attention import StepAttention
from engine.forward.step_inputs import StepInputs, resolved, step_inputs, to_device
from engine.forward.step_recorder import NotRecorded, StepRecorder
from engine.machine.device import Device
from engine.machine.memory import HEAD_ROWS
from engine.model.model_shape import num_kv_blocks
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.segments import Ints


class OtherRanks(Protocol):
    """Those that run each step of the first rank's with it, as `engine.ranks.other_ranks.OtherRanks` does."""

    def running(self, step: SchedulerOutput) -> AbstractContextManager[None]:
        """The others begin the step, which this rank runs within."""

    def close(self) -> None:
        """Ends them."""


if TYPE_CHECKING:
    from engine.forward.gpu.decode_graphs import Capture


class ModelRunner:
    """Holds the model, its KV cache, and what repeats its steps; `num_blocks` follows from the KV budget."""

    def __init__(
        self, model: LoadedModel, config: EngineConfig, device: Device, capture: "Capture | None" = None
    ) -> None:
        """`capture` is how a GPU's steps are recorded, if it is not to be as CUDA graphs."""
        self.model = model
        self.device = device
        shape = model.shape
        self.num_blocks = num_kv_blocks(shape, config, model.kv_format)
        self.block_bytes = shape.kv_bytes_per_token(model.kv_format) * config.block_size
        self.cache = KVCache(
            shape.num_layers,
            shape.num_kv_heads,
            self.num_blocks * config.block_size,
            shape.head_dim,
            model.kv_format,
            device.name,
            model.kv_scales,
        )
        self.attention = attention_backend(device.backend, self.cache, in_order=model.strict)
        self.adapters = RunnerAdapters(model, self.cache, config, device)
        self.last_tokens = torch.zeros(1, dtype=torch.int64, device=device.name)
        self.others: OtherRanks | None = None
        self.recorder = self._recorder(capture)

    @property
    def num_slots(self) -> int:
        return self.cache.keys[0].shape[1]

    @property
    def num_steps_ahead(self) -> int:
        """Steps that may be scheduled while one runs: a GPU runs by itself, a CPU in the engine's own thread."""
        return 1 if self.device.backend == "triton" else 0

    @torch.inference_mode()
    def forward(self, step: SchedulerOutput) -> Forward:
        """Of the step's asked rows; the KV of all of its rows is in the cache when this has run.

        Tokens in flight are read from `last_tokens`, what the step before sampled. Where there are `others`, they run
        the step too; what one of them lacks ends all of them.
        """
        if self.others is None:
            return self._forward(step)
        with self.others.running(step):
            return self._forward(step)

    def _forward(self, step: SchedulerOutput) -> Forward:
        self.adapters.change(step)
        if self.recorder is not None and self.recorder.takes(step, self.last_tokens):
            with suppress(NotRecorded):
                return self.recorder.run(step, self.last_tokens)
        inputs = step_inputs(step, self.device.name)
        attention, ids = self.attention.prepare(step, inputs), self._input_ids(step, inputs)
        with self.adapters.during(step, attention):
            return Forward(self.model.hidden(ids, inputs.position_ids, attention))

    def _input_ids(self, step: SchedulerOutput, inputs: StepInputs) -> Tensor:
        """(rows,), none below 0. Ranks that do not sample have the tokens in flight from the one that does."""
        if not (step.input_ids < 0).any():
            return inputs.input_ids
        group = self.model.group
        if group is None:
            return resolved(inputs.input_ids, self.last_tokens)
        own = resolved(inputs.input_ids, self.last_tokens) if group.leads else inputs.input_ids.clone()
        return group.as_first_has(own)

    def close(self) -> None:
        """Ends the other ranks, if there are any."""
        if self.others is not None:
            self.others.close()

    def free_memory(self) -> None:
        """Gives back what a step that found too little memory has taken."""
        if self.device.backend == "triton":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def logits(self, hidden: Tensor, places: Ints) -> Iterator[tuple[slice, Tensor]]:
        """Logits of the rows of `hidden` at `places`, a bounded number at a time: which, and (rows, vocab_size)."""
        for part in _parts(len(places)):
            yield part, self.model.logits(hidden[self.index(places[part])])

    @torch.inference_mode()
    def best_tokens(self, hidden: Tensor, places: Ints, told: Tensor | None = None) -> Chosen:
        """Of the rows at `places`, as `LoadedModel.best_tokens` has them."""
        return self._best_tokens(hidden if are_all(places, len(hidden)) else hidden[self.index(places)], told)

    def _best_tokens(self, rows: Tensor, told: Tensor | None = None) -> Chosen:
        """A bounded number at a time."""
        made = [self.model.best_tokens(rows[part], None if told is None else told[part]) for part in _parts(len(rows))]
        return made[0] if len(made) == 1 else Chosen(*(torch.cat(parts) for parts in zip(*made, strict=True)))

    def index(self, places: Ints) -> Tensor:
        """On the device, so that to index by it waits for nothing."""
        return to_device(places, self.device.name)

    def _recorder(self, capture: "Capture | None") -> StepRecorder | None:
        """The device's; None where a step does more than launch what can be launched again."""
        if self.model.group is not None:
            return None  # a sum over ranks is not launched again by one of them
        if isinstance(self.model.body, FusedBody):
            attention = CpuAttention(self.cache, in_order=self.model.strict)
            return LoopReplay(self.model.body, attention, self.adapters)
        if self.device.backend != "triton" or not self.model.waits_for_nothing:
            return None
        # Where Triton is not installed, nothing asks for these.
        from engine.forward.gpu.attention import GpuAttention
        from engine.forward.gpu.decode_graphs import DecodeGraphs, cuda_capture

        def compute(input_ids: Tensor, position_ids: Tensor, attention: StepAttention) -> Forward:
            hidden = self.model.hidden(input_ids, position_ids, attention)
            return Forward(hidden, self._best_tokens(hidden))

        return DecodeGraphs(compute, GpuAttention(self.cache), self.device.name, capture or cuda_capture())


def _parts(count: int) -> Iterator[slice]:
    for start in range(0, count, HEAD_ROWS):
        yield slice(start, min(start + HEAD_ROWS, count))
