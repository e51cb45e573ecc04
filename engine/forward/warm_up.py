"""What a GPU needs built before its first step: kernels in every form that a step can ask for, and the decode graphs.

Compiled kernels are kept on disk by Triton, so that a machine compiles them once; graphs are captured at every load.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from engine.forward.step_recorder import NotRecorded
from engine.scheduling.reads import Reads
from engine.scheduling.scheduler_output import SchedulerOutput
from engine.stages import enter
from kernels.segments import Segment, Segments

# Stacked rows at which a tuned device may take another tile.
WIDEST = (64, 128, 256, 512, 1024, 2048, 4096, 8192)

if TYPE_CHECKING:
    from engine.forward.model_runner import ModelRunner

# Keys of its own that a row of a captured step has, and those that all share: what real steps may need twice of.
OWN_KEYS, SHARED_KEYS = 512, 4096


def warm_up(runner: "ModelRunner", step_tokens: int) -> None:
    """Compiles what steps of each kind launch, side by side, and says how far it is; then runs them, one of
    `step_tokens` among them, and captures the decode graphs. No step keeps KV.
    """
    from kernels.gpu.tuning.launch import compile_only  # where Triton is not installed, nothing asks for it

    shape = runner.model.shape
    longest = min(step_tokens, shape.max_model_len)
    whole = (*[longest] * (step_tokens // longest), 1)
    prefill = [*prefill_lengths(shape.num_heads // shape.num_kv_heads, longest), whole]
    recorder, slots = runner.recorder, runner.num_slots
    decoding = [] if recorder is None or not slots else list(decode_steps(recorder.sizes(runner.num_blocks), slots))
    enter("compiling kernels")
    with compile_only(lambda done, total: enter(f"compiling kernels {done} of {total}")):
        for lengths in prefill:
            _prefill(runner, lengths)
        for step in decoding:
            assert recorder is not None
            recorder.rehearse(step)
    enter("making the GPU's graphs ready")
    for lengths in prefill:
        _prefill(runner, lengths)
    for step in decoding:
        assert recorder is not None
        with suppress(NotRecorded):
            recorder.run(step, runner.last_tokens)
    torch.cuda.synchronize()


def _prefill(runner: "ModelRunner", lengths: Sequence[int]) -> None:
    """One step of sequences of these lengths, whose last rows are sampled."""
    ends = Reads.samples(np.cumsum(lengths) - 1, np.arange(len(lengths)))
    forward = runner.forward(replace(independent_rows(lengths), reads=ends))
    runner.best_tokens(forward.hidden, np.arange(len(ends)))


def prefill_lengths(group: int, longest: int) -> list[tuple[int, ...]]:
    """Lengths of sequences whose rows, with the `group` heads that are stacked, fill each tile that there is, and two
    at once: a small one, one of the first size, one of the largest. Of each doubling up to `longest` rows, at which a
    tuned device may change its tile, there is one.
    """
    few, some, many = 1, max(64 // group, 1), min(300, longest)
    doublings = [stacked // group for stacked in WIDEST if some < stacked // group <= longest]
    return [(few,), *(lengths for rows in (some, many, *doublings) for lengths in ((rows,), (rows, few)))]


def independent_rows(lengths: Sequence[int]) -> SchedulerOutput:
    """Sequences of as many tokens, each behind nothing, as one step of prefill that leaves no KV and asks every row."""
    positions = np.concatenate([np.arange(length) for length in lengths])
    ends = np.cumsum(lengths)
    segments = Segments.of(
        Segment(int(end) - length, int(end), int(end) - length, int(end), 0, in_step=True)
        for end, length in zip(ends, lengths, strict=True)
    )
    step = SchedulerOutput.causal_rows(len(positions))
    # Any vocabulary has token 0; positions may be more than tokens.
    return replace(step, position_ids=positions, segments=segments, input_ids=np.zeros_like(positions))


def decode_steps(sizes: Sequence[int], num_slots: int) -> Iterator[SchedulerOutput]:
    """A step of each of `sizes`, the largest first, that reads any slots and writes none."""
    own, shared = min(OWN_KEYS, num_slots), min(SHARED_KEYS, num_slots)
    for size in sorted(sizes, reverse=True):
        segments = [Segment(0, size, 0, shared, 0)] + [Segment(row, row + 1, 0, own, shared) for row in range(size)]
        yield SchedulerOutput(
            input_ids=np.zeros(size, dtype=np.int64),
            position_ids=np.full(size, shared + own - 1, dtype=np.int64),
            slot_mapping=np.full(size, -1, dtype=np.int64),
            segments=Segments.of(segments),
            reads=Reads.samples(np.arange(size), np.arange(size)),
            num_prefill_tokens=0,
            num_decode_tokens=size,
            num_label_tokens=0,
        )
