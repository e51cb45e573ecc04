"""Launches a step whole, or in parts that a device has the memory for."""

import logging
from collections import deque
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from engine.forward.model_runner import ModelRunner
from engine.loop.step_reader import StepReader, StepValues
from engine.machine.out_of_memory import is_out_of_memory
from engine.scheduling.halves import halves
from engine.scheduling.reads import ReadKind
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.segments import Ints

# Launches in parts behind which twice as many rows are tried again: whoever had the memory may have given it back.
# Where they did not, the next try waits twice as long.
PATIENCE = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class LaunchedStep:
    """A step on its way: what its parts come to, and the rows that no memory was found for.

    `tokens` (samples,) are for the next step; -1 for a lost row's. `forward_seconds` are the host's, until hidden
    states were launched.
    """

    step: SchedulerOutput
    values: tuple[StepValues, ...]
    tokens: Tensor
    lost_rows: Ints
    forward_seconds: float


class StepLauncher:
    """Halves a step that memory does not suffice for, and for a while every step that is as large."""

    def __init__(self, runner: ModelRunner, reader: StepReader) -> None:
        self._runner = runner
        self._reader = reader
        self._no_token = torch.full((1,), -1, dtype=torch.int64, device=runner.device.name)
        self._most_rows: int | None = None
        self._patience = PATIENCE
        self._num_in_parts = 0
        self._tried_more = False
        self._forward_seconds = 0.0

    def launch(self, step: SchedulerOutput) -> LaunchedStep:
        """Raises what the model raises, but for what says that memory is at its end."""
        self._forward_seconds = 0.0
        self._try_more(step)
        waiting = deque([(0, step)])
        values: list[StepValues] = []
        tokens: list[Tensor] = []
        lost: list[Ints] = []
        while waiting:
            first, part = waiting.popleft()
            parts = halves(part) if self._is_too_large(part) else None
            made = None if parts else self._launch(part)
            if not parts and made is None:
                parts = self._halved(part)
                made = None if parts else self._launch(part)  # what can be given back is free now
            if parts:
                before, behind = parts
                waiting.extendleft([(first + before.num_scheduled_tokens, behind), (first, before)])
                continue
            if made is not None:
                values.append(made)
                tokens.append(made.tokens)
                continue
            lost.append(np.arange(first, first + part.num_scheduled_tokens))
            tokens.append(self._no_token.expand(len(part.reads.of_kind(ReadKind.SAMPLE))))
        whole = self._joined(tokens)
        if whole is None:
            values, lost = [], [np.arange(step.num_scheduled_tokens)]
            whole = self._no_token.expand(sum(map(len, tokens)))
        lost_rows = np.concatenate([np.empty(0, np.int64), *lost])
        return LaunchedStep(step, tuple(values), whole, lost_rows, self._forward_seconds)

    def _joined(self, tokens: list[Tensor]) -> Tensor | None:
        """All of them; None where there is no memory even for these few bytes."""
        if len(tokens) == 1:
            return tokens[0]
        for _ in range(2):
            try:
                return torch.cat(tokens)
            except (MemoryError, RuntimeError) as problem:
                if not is_out_of_memory(problem):
                    raise
            self._runner.free_memory()
        return None

    def _is_too_large(self, part: SchedulerOutput) -> bool:
        return self._most_rows is not None and part.num_scheduled_tokens > self._most_rows

    def _launch(self, part: SchedulerOutput) -> StepValues | None:
        """None where memory did not suffice; the exception, which holds on to tensors, is gone by then."""
        try:
            masks = self._reader.begin_masks(part)
            started = perf_counter()
            forward = self._runner.forward(part)
            self._forward_seconds += perf_counter() - started
            return self._reader.launch(part, forward, masks)
        except (MemoryError, RuntimeError, OSError) as problem:
            if not is_out_of_memory(problem):
                raise
        return None

    def _halved(self, part: SchedulerOutput) -> tuple[SchedulerOutput, SchedulerOutput] | None:
        self._runner.free_memory()
        self._num_in_parts = 0
        if self._tried_more:
            self._patience, self._tried_more = 2 * self._patience, False
        parts = halves(part)
        if parts:
            self._most_rows = max(half.num_scheduled_tokens for half in parts)
            log.warning(
                "out of memory in a step of %d rows; steps have at most %d from now on",
                part.num_scheduled_tokens,
                self._most_rows,
            )
        return parts

    def _try_more(self, step: SchedulerOutput) -> None:
        """Doubles the most rows of a step where so many have gone well that were cut for it."""
        if self._most_rows is None or not self._is_too_large(step):
            return
        self._num_in_parts += 1
        if self._num_in_parts >= self._patience:
            self._num_in_parts, self._tried_more, self._most_rows = 0, True, 2 * self._most_rows
