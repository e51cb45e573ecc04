"""Launches a step whole, or in parts that a device has the memory for."""

import logging
from collections import deque
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from engine.forward.model_runner import ModelRunner
from engine.loop.step_reader import StepReader, StepValues
from engine.scheduling.halves import halves
from engine.scheduling.reads import ReadKind
from engine.scheduling.scheduler_output import SchedulerOutput

# What torch's allocator for a CPU says; a GPU's raises an exception of its own.
_CPU_SAYS = ("can't allocate memory", "not enough memory")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class LaunchedStep:
    """A step on its way: what its parts come to, and the sequences that no memory was found for.

    `tokens` (samples,) are for the next step; -1 for a sequence that has none. `forward_seconds` are the host's, until
    hidden states were launched.
    """

    step: SchedulerOutput
    values: tuple[StepValues, ...]
    tokens: Tensor
    out_of_memory: frozenset[int]
    forward_seconds: float


class StepLauncher:
    """Halves a step that memory does not suffice for, and from then on every step that is as large."""

    def __init__(self, runner: ModelRunner, reader: StepReader) -> None:
        self._runner = runner
        self._reader = reader
        self._most_rows: int | None = None
        self._forward_seconds = 0.0

    def launch(self, step: SchedulerOutput) -> LaunchedStep:
        """Raises what the model raises, and what is out of memory for one row that later ones read."""
        self._forward_seconds = 0.0
        waiting = deque([step])
        values: list[StepValues] = []
        tokens: list[Tensor] = []
        failed: list[int] = []
        while waiting:
            part = waiting.popleft()
            parts = halves(part) if self._is_too_large(part) else None
            made = None if parts else self._launch(part)
            if made is not None:
                values.append(made)
                tokens.append(made.tokens)
                continue
            parts = parts or self._halved(part)
            if parts:
                waiting.extendleft(reversed(parts))
                continue
            failed += set(part.reads.key.tolist())
            samples = part.reads.of_kind(ReadKind.SAMPLE)
            tokens.append(torch.full((len(samples),), -1, dtype=torch.int64, device=self._runner.device.name))
        whole = tokens[0] if len(tokens) == 1 else torch.cat(tokens)
        return LaunchedStep(step, tuple(values), whole, frozenset(failed), self._forward_seconds)

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
        except (MemoryError, RuntimeError) as problem:
            if not is_out_of_memory(problem) or not _can_be_left_out(part):
                raise
        return None

    def _halved(self, part: SchedulerOutput) -> tuple[SchedulerOutput, SchedulerOutput] | None:
        self._runner.free_memory()
        parts = halves(part)
        if parts:
            self._most_rows = max(half.num_scheduled_tokens for half in parts)
            log.warning(
                "out of memory in a step of %d rows; steps have at most %d from now on",
                part.num_scheduled_tokens,
                self._most_rows,
            )
        return parts


def _can_be_left_out(part: SchedulerOutput) -> bool:
    """False for one row whose KV later rows read, if it is not the last of a prompt that is asked to go on.

    More rows can be halved, or are a leaf's own, which nothing reads later.
    """
    if part.num_scheduled_tokens > 1 or bool((part.reads.kind <= ReadKind.LABEL).any()):
        return True
    return len(part.reads) > 0 and int(part.slot_mapping[0]) < 0


def is_out_of_memory(problem: BaseException) -> bool:
    """On a GPU or on the host."""
    if isinstance(problem, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(problem, RuntimeError) and any(words in str(problem) for words in _CPU_SAYS)
