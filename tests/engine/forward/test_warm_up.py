"""What is built before the first step is what later steps ask for."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.forward.forward_output import Forward
from engine.forward.warm_up import decode_steps, independent_rows, prefill_lengths, warm_up
from engine.scheduling.scheduler_output import SchedulerOutput
from engine.stages import hear_stages
from kernels.gpu.attention.attention_shape import AttentionShape
from kernels.gpu.attention.launch_tables import launch_tables
from kernels.gpu.tuning.attention_config import ATTENTION, SAFE
from kernels.gpu.tuning.launch import launch
from kernels.segments import Segment, Segments
from tests.kernels.gpu.tuning.test_launch import Kernel

Form = tuple[int, int, bool, bool]


def form(monkeypatch: pytest.MonkeyPatch, arch: str, step: SchedulerOutput, shape: AttentionShape) -> Form:
    """What a compiled kernel of a step differs by: the tile's sizes and which of them there are."""
    monkeypatch.setattr("kernels.gpu.tuning.attention_config.architecture", lambda _: arch)
    return launch_form(step, shape)


def launch_form(step: SchedulerOutput, shape: AttentionShape) -> Form:
    made = launch_tables(step.segments, step.position_ids, shape, "cpu")
    tables = made.by_window[None]
    return made.config.large, made.config.keys, tables.has_small, tables.has_large


@pytest.mark.parametrize(("arch", "dim", "group"), list(product(ATTENTION, [64, 128, 256], [1, 3, 4, 8])))
def test_warm_steps_have_every_form(monkeypatch: pytest.MonkeyPatch, arch: str, dim: int, group: int) -> None:
    """Prefill of any length, with and without rows beside it that stack to a small tile."""
    shape = AttentionShape(2 * group, 2, dim, 64)
    warm = {form(monkeypatch, arch, independent_rows(lengths), shape) for lengths in prefill_lengths(group, 1024)}
    draw = np.random.default_rng(group)
    for _ in range(60):
        drawn = draw.integers(1, draw.choice([3, 20, 500]), draw.integers(1, 5))
        assert form(monkeypatch, arch, independent_rows(drawn.tolist()), shape) in warm, drawn


@pytest.mark.parametrize("group", [1, 4, 16])
def test_a_tuned_device_may_change_its_tile_at_each_doubling(monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    """Where every doubling of stacked rows has a tile of its own, each is there before the first step."""
    configs = {1 << power: replace(SAFE, large=1 << power) for power in range(20)}
    monkeypatch.setattr(
        "kernels.gpu.attention.launch_tables.choose_config",
        lambda _device, _dim, widest: configs[max(64, 1 << (widest - 1).bit_length())],
    )
    shape = AttentionShape(2 * group, 2, 128, 64)
    warm = {launch_form(independent_rows(lengths), shape) for lengths in prefill_lengths(group, 512)}
    for rows in (1, 5, 33, 64, 90, 129, 300, 512):
        for lengths in ([rows], [rows, 1]):
            made = launch_form(independent_rows(lengths), shape)
            assert made in warm or made[0] > 8192, lengths


class Runner:
    """Launches a kernel at each step, of a form by the step's rows."""

    def __init__(self, kernel: Kernel, sizes: tuple[int, ...]) -> None:
        self.kernel = kernel
        self.model = SimpleNamespace(shape=SimpleNamespace(max_model_len=512, num_heads=8, num_kv_heads=2))
        self.num_slots, self.num_blocks = 64, 4
        self.recorder = SimpleNamespace(
            sizes=lambda _: sizes, rehearse=self.forward, run=lambda step, _: self.forward(step)
        )
        self.last_tokens = torch.zeros(1)

    def forward(self, step: SchedulerOutput) -> Forward:
        launch(self.kernel, (1,), step.num_scheduled_tokens)
        return Forward(torch.zeros(1))

    def best_tokens(self, hidden: torch.Tensor, places: np.ndarray) -> None:
        launch(self.kernel, (1,), 0)


def test_everything_is_compiled_before_anything_runs_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    kernel, told = Kernel(), []
    with hear_stages(lambda stage: told.append((stage, len(kernel.ran)))):
        warm_up(Runner(kernel, (2, 4)), step_tokens=512)
    forms = len(set(kernel.ran))
    assert told[0] == ("compiling kernels", 0)
    assert told[1:-1] == [(f"compiling kernels {done} of {forms}", 0) for done in range(1, forms + 1)]
    assert told[-1] == ("making the GPU's graphs ready", 0)
    assert {(4,), (2,), (513,)} <= set(kernel.ran)


def test_steps_are_of_a_token_that_every_vocabulary_has() -> None:
    step = independent_rows([3, 2])
    assert step.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert not step.input_ids.any()
    assert step.segments.table.tolist() == [[0, 3, 0, 3, 0, 1], [3, 5, 3, 5, 0, 1]]


def test_decode_steps_are_of_each_size_and_write_nothing() -> None:
    steps = list(decode_steps((1, 4, 2), num_slots=100))
    assert [step.num_scheduled_tokens for step in steps] == [4, 2, 1]
    assert all((step.slot_mapping == -1).all() for step in steps)
    segments = [Segment(0, 2, 0, 100, 0), Segment(0, 1, 0, 100, 100), Segment(1, 2, 0, 100, 100)]
    assert np.array_equal(steps[1].segments.table, Segments.of(segments).table)
