"""Steps on a CPU, whose layers are calls of compiled loops: a step of few rows spends its time on making those calls.

So the calls of one step are kept, and made again for the next of as many rows with its own plan and slots in them.
What `kernels.cpu.language.openmp.Recording` asks for is compared at every step: it all lies where it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from engine.forward.cpu.attention import CpuAttention, CpuStepAttention
from engine.forward.cpu.fused_body import FusedBody
from engine.forward.cpu.fused_layer import FusedLayer, States
from engine.forward.forward_output import Forward
from engine.forward.runner_adapters import RunnerAdapters
from engine.forward.step_inputs import resolved, step_inputs
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.cpu.language.openmp import Recording


@dataclass(frozen=True, slots=True)
class Conditions:
    """What steps that make the same calls have in common.

    `windows` are those of the `layers` that are recorded. `addresses` are those of the states and of the room for the
    step's own KV; `workspace_moves` says the same of all that layers put in the workspace. Weights and the KV cache
    stay where they are. `adapter_rank` is the greatest of the adapters that rows run with, 0 where none does.
    """

    rows: int
    layers: tuple[FusedLayer, ...]
    windows: tuple[int | None, ...]
    addresses: tuple[int, ...]
    workspace_moves: int
    adapter_rank: int


class LoopReplay:
    """The `StepRecorder` of a CPU. One step is kept, the last that was not a repetition."""

    def __init__(self, body: FusedBody, attention: CpuAttention, adapters: RunnerAdapters | None = None) -> None:
        self._body = body
        self._attention = attention
        self._adapters = adapters
        self._recorded: tuple[Conditions, Recording] | None = None

    def sizes(self, _: int, /) -> Sequence[int]:
        """None: to record a step takes no longer than to run it."""
        return ()

    def rehearse(self, _: SchedulerOutput, /) -> None:
        """Nothing: loops are compiled while the model loads."""

    def takes(self, _: SchedulerOutput, __: Tensor, /) -> bool:
        return True

    def run(self, step: SchedulerOutput, last_tokens: Tensor) -> Forward:
        inputs = step_inputs(step, "cpu")
        ids = resolved(inputs.input_ids, last_tokens) if (step.input_ids < 0).any() else inputs.input_ids
        attention = self._attention.prepare(step, inputs)
        if self._adapters is not None:
            self._adapters.tell(attention, step)
        states = self._body.enter(ids, inputs.position_ids)
        return Forward(self._body.norm(self._through_layers(states, attention)))

    def _through_layers(self, states: States, attention: CpuStepAttention) -> Tensor:
        """The hidden states of the asked rows. A last layer that leaves rows out selects them, which is no loop."""
        layers = self._body.stack
        asks_all = len(attention.asked_rows) == len(states.hidden)
        alike = layers if asks_all else layers[:-1]
        conditions = self._conditions(alike, states, attention)
        if self._recorded is not None and self._recorded[0] == conditions:
            attention.repeat(self._recorded[1])
        else:
            self._record(alike, states, attention, conditions)
        return states.hidden if asks_all else layers[-1](states, attention, asked_alone=True)

    def _conditions(self, layers: tuple[FusedLayer, ...], states: States, attention: CpuStepAttention) -> Conditions:
        rows = len(states.hidden)
        tensors = (states.hidden, states.cos, states.sin, *attention.cache.own(rows))
        return Conditions(
            rows,
            layers,
            tuple(layer.window for layer in layers),
            tuple(tensor.data_ptr() for tensor in tensors),
            self._body.workspace.moves,
            0 if attention.adapters is None else attention.adapters.rank,
        )

    def _record(
        self, layers: tuple[FusedLayer, ...], states: States, attention: CpuStepAttention, conditions: Conditions
    ) -> None:
        """Runs the layers; their calls are kept where nothing but calls was made, and no buffer moved between them."""
        with Recording() as recording:
            for layer in layers:
                layer(states, attention)
        with_adapters = attention.adapters is not None
        expected = sum(layer.num_loops + with_adapters * layer.num_adapter_loops for layer in layers)
        is_whole = len(recording.calls) == expected
        stayed = self._body.workspace.moves == conditions.workspace_moves
        self._recorded = (conditions, recording) if is_whole and stayed else None
