"""Steps that only decode, as CUDA graphs: one launch of all their kernels, head and greatest logit included.

A graph is captured at the first step of its size and holds all that it reads as long as it lives. A step is padded to
the next size; the rows behind its own read nothing and keep nothing. Where a step follows from the one before, its
plan is the same object, and positions and slots are all that is copied.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from engine.forward.forward_output import Chosen, Forward
from engine.forward.gpu.attention import GpuAttention, GpuStepAttention
from engine.forward.step_inputs import StepInputs, resolved, to_device
from engine.forward.step_recorder import NotRecorded
from engine.machine.out_of_memory import is_out_of_memory
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.gpu.attention.capacity import CapacityError
from kernels.segments import Segments

log = logging.getLogger(__name__)

# Rows of a graph. Between two of them at most a third of the rows is for nothing.
SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
# Samples of the step before a graph's, at most.
LAST_TOKENS = 2 * SIZES[-1]


# Hidden states and best tokens of ids and positions (rows,), through an attention.
Compute = Callable[[Tensor, Tensor, GpuStepAttention], Forward]
# Captures what a function launches: what launches it again, and the function's result, whose tensors that overwrites.
Capture = Callable[[Callable[[], Forward]], tuple[Callable[[], None], Forward]]


def cuda_capture() -> Capture:
    """As CUDA graphs in one pool of memory."""
    pool = torch.cuda.graph_pool_handle()

    def capture(run: Callable[[], Forward]) -> tuple[Callable[[], None], Forward]:
        graph = torch.cuda.CUDAGraph()
        # Another thread of the process may use the device meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            made = run()
        return graph.replay, made

    return capture


class DecodeGraphs:
    """The `StepRecorder` of a GPU: graphs of one model, by rows. Only one of them runs at a time."""

    def __init__(self, compute: Compute, attention: GpuAttention, device: str, capture: Capture) -> None:
        self._compute = compute
        self._attention = attention
        self._capture = capture
        self._graphs: dict[int, _Graph] = {}
        self._unrecorded: set[int] = set()
        self._last_tokens = torch.zeros(LAST_TOKENS, dtype=torch.int64, device=device)

    def sizes(self, most: int) -> tuple[int, ...]:
        """Of the graphs that steps of at most so many rows may need."""
        return SIZES[: bisect_left(SIZES, most) + 1]

    def takes(self, step: SchedulerOutput, last_tokens: Tensor) -> bool:
        """Whether the step only decodes, by no more rows than the largest graph has, and none runs with an adapter.

        A run of rows of one adapter is a program, and how many there are follows from the rows.
        """
        if step.adapters is not None and bool((step.adapters.of_row >= 0).any()):
            return False
        if self._size_of(step) in self._unrecorded:
            return False
        only_decodes = step.num_decode_tokens == step.num_scheduled_tokens
        return only_decodes and step.num_decode_tokens <= SIZES[-1] and len(last_tokens) <= LAST_TOKENS

    def run(self, step: SchedulerOutput, last_tokens: Tensor) -> Forward:
        """The step's hidden states and margins, which last until the next run, and best tokens, which stay: the next
        step reads them, behind whatever else ran of this one. `last_tokens` as in `resolved`.
        """
        rows, size = step.num_scheduled_tokens, self._size_of(step)
        self._last_tokens[: len(last_tokens)].copy_(last_tokens)
        graph = self._graphs.get(size)
        if graph is None or not graph.takes(step):
            graph = self._graphs[size] = self._recorded(step, size)
        made = graph.run(step)
        best = None if made.best is None else Chosen(made.best.tokens[:rows].clone(), made.best.margins[:rows])
        return Forward(made.hidden[:rows], best)

    def rehearse(self, step: SchedulerOutput) -> None:
        """Launches what the graph of a step holds that has one of the sizes, and captures nothing."""
        self._captured(step, step.num_scheduled_tokens, lambda run: (lambda: None, run()))

    def _size_of(self, step: SchedulerOutput) -> int:
        """Rows of the smallest graph that holds the step, or of the largest that there is."""
        return SIZES[min(bisect_left(SIZES, step.num_scheduled_tokens), len(SIZES) - 1)]

    def _recorded(self, step: SchedulerOutput, size: int) -> "_Graph":
        """Raises NotRecorded where there is memory for the step perhaps, but not to keep what it works in."""
        self._graphs.pop(size, None)
        try:
            return self._captured(step, size, self._capture)
        except RuntimeError as problem:
            if not is_out_of_memory(problem):
                raise
        self._unrecorded.add(size)
        log.warning("out of memory for the graph of steps of %d rows; they run without one from now on", size)
        raise NotRecorded

    def _captured(self, step: SchedulerOutput, size: int, capture: Capture) -> "_Graph":
        return _Graph(padded(step, size), self._attention, self._last_tokens, self._compute, capture)


class _Graph:
    """One captured step, and the memory that it reads and writes."""

    def __init__(
        self,
        step: SchedulerOutput,
        attention: GpuAttention,
        last_tokens: Tensor,
        compute: Compute,
        capture: Capture,
    ) -> None:
        """Runs the step once, so that whatever is built at first is there, and captures it."""
        self.size = step.num_scheduled_tokens
        self.numbers = torch.zeros((3, self.size), dtype=torch.int64, device=last_tokens.device)
        ids, positions, slots = self.numbers
        inputs = StepInputs(ids, positions, slots, torch.arange(self.size, device=last_tokens.device))
        self.attention = attention.prepare_to_repeat(step, inputs)
        self.segments: Segments | None = step.segments

        def run() -> Forward:
            self.attention.move_rows()
            return compute(resolved(ids, last_tokens), positions, self.attention)

        self._set(step)
        run()
        self.replay, self.made = capture(run)

    def takes(self, step: SchedulerOutput) -> bool:
        """Plans the step where its segments are new; False where there is no room for the plan."""
        if step.segments is self.segments:
            return True
        self.segments = None  # whatever ends this, half a plan is nobody's
        try:
            self.attention.replan(padded(step, self.size))
        except CapacityError:
            return False
        self.segments = step.segments
        return True

    def run(self, step: SchedulerOutput) -> Forward:
        self._set(step)
        self.replay()
        return self.made

    def _set(self, step: SchedulerOutput) -> None:
        """The numbers of the step's rows; those of the rows behind them say that they keep nothing."""
        columns = np.zeros((3, self.size), dtype=np.int64)
        columns[2] = -1
        rows = step.num_scheduled_tokens
        columns[0, :rows], columns[1, :rows], columns[2, :rows] = step.input_ids, step.position_ids, step.slot_mapping
        self.numbers.view(-1).copy_(to_device(columns.reshape(-1), str(self.numbers.device)))


def padded(step: SchedulerOutput, size: int) -> SchedulerOutput:
    """With rows behind the step's own that read nothing and keep nothing."""
    more = size - step.num_scheduled_tokens
    return replace(
        step,
        input_ids=np.pad(step.input_ids, (0, more)),
        position_ids=np.pad(step.position_ids, (0, more)),
        slot_mapping=np.pad(step.slot_mapping, (0, more), constant_values=-1),
    )
