"""Captured decode steps where a GPU is played."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.forward.forward_output import Chosen, Forward
from engine.forward.gpu.decode_graphs import DecodeGraphs
from engine.forward.load import load_model
from engine.forward.model_runner import ModelRunner
from engine.forward.warm_up import decode_steps
from engine.loop.step_launcher import StepLauncher
from engine.model.checkpoint import resolve_model
from engine.scheduling.reads import Reads
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.segments import Segment, Segments
from tests.engine.families import save_tiny
from tests.engine.forward.gpu.test_attention import config_of
from tests.engine.forward.played_gpu import PlayedCapture, played_gpu


class Runner:
    """Runs graphs of no layers: a row's best token is one more than its own."""

    def __init__(self) -> None:
        tables = SimpleNamespace(move_rows=lambda: None, replan=lambda _: None)
        attention: Any = SimpleNamespace(prepare_to_repeat=lambda *_: tables)
        self.device, self.free_memory = SimpleNamespace(name="cpu"), lambda: None
        self.last_tokens = torch.zeros(1, dtype=torch.int64)
        self._graphs = DecodeGraphs(self._compute, attention, "cpu", PlayedCapture())

    def _compute(self, ids: Tensor, *_: object) -> Forward:
        return Forward(torch.zeros(len(ids), 1), Chosen(ids + 1, torch.zeros(len(ids))))

    def forward(self, step: SchedulerOutput) -> Forward:
        return self._graphs.run(step, self.last_tokens)


class Reader:
    """Takes the best tokens as they are, as `StepReader` does for greedy texts; `finds` memory at each launch or not,
    and at all later ones.
    """

    def __init__(self, *finds: bool) -> None:
        self._finds = list(finds)

    def begin_masks(self, _: SchedulerOutput) -> None:
        return None

    def launch(self, _: SchedulerOutput, forward: Forward, __: None) -> Any:
        if self._finds and not self._finds.pop(0):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
        assert forward.best is not None
        return SimpleNamespace(tokens=forward.best.tokens)


def decoding(ids: list[int]) -> SchedulerOutput:
    """Behind the samples of the step before where ids are below 0."""
    rows = np.arange(len(ids))
    segments = Segments.of([Segment(row, row + 1, 8 * row, 8 * row + 6, 0) for row in rows.tolist()])
    fives = np.full(len(ids), 5)
    return SchedulerOutput(np.array(ids), fives, fives * 0 - 1, segments, Reads.samples(rows, rows), 0, len(ids), 0)


@pytest.mark.fault(19)
@pytest.mark.parametrize("finds", [(), (False,), (False, True, False), (False, False, False)])
def test_halves_of_a_step_leave_the_next_one_all_its_tokens(finds: tuple[bool, ...]) -> None:
    """Both are steps of one graph, whose result the second one overwrites; so does a second try of any part."""
    runner: Any = Runner()
    runner.last_tokens = StepLauncher(runner, Reader()).launch(decoding([10, 20, 30, 40])).tokens  # type: ignore[arg-type]
    for step in range(3):
        made = StepLauncher(runner, Reader(*finds)).launch(decoding([-1, -2, -3, -4]))  # type: ignore[arg-type]
        assert made.tokens.tolist() == [12 + step, 22 + step, 32 + step, 42 + step]
        runner.last_tokens = made.tokens


@pytest.mark.parametrize("kind", ["llama", "internlm3"])
def test_a_model_with_dynamic_rope_is_captured(kind: str, tmp_path: Path) -> None:
    """transformers' own looks in each step for a position beyond the context, which a captured one may not."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 6.0}
    save_tiny(kind, {"rope_parameters": rope}, tmp_path)
    capture, device, config = PlayedCapture(), played_gpu(), config_of(tmp_path)
    runner = ModelRunner(load_model(resolve_model(str(tmp_path)), device), config, device, capture)
    for kept in (*runner.cache.keys, *runner.cache.values):
        kept.zero_()  # what the step reads
    assert runner.recorder is not None
    (step,) = decode_steps((1,), runner.num_slots)
    runner.recorder.run(step, runner.last_tokens)
    assert capture.replays == [1]
