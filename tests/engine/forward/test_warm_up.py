"""What is built before the first step is what later steps ask for."""

from itertools import product

import numpy as np
import pytest

from engine.forward.warm_up import decode_steps, independent_rows, prefill_lengths
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.gpu.attention.attention_shape import AttentionShape
from kernels.gpu.attention.launch_tables import launch_tables
from kernels.gpu.tuning.attention_config import ATTENTION
from kernels.segments import Segment, Segments

Form = tuple[int, int, bool, bool]


def form(monkeypatch: pytest.MonkeyPatch, arch: str, step: SchedulerOutput, shape: AttentionShape) -> Form:
    """What a compiled kernel of a step differs by: the tile's sizes and which of them there are."""
    monkeypatch.setattr("kernels.gpu.tuning.attention_config.architecture", lambda _: arch)
    made = launch_tables(step.segments, step.position_ids, shape, "cpu")
    tables = made.by_window[None]
    return made.config.large, made.config.keys, tables.has_small, tables.has_large


@pytest.mark.parametrize(("arch", "dim", "group"), list(product(ATTENTION, [64, 128, 256], [1, 3, 4, 8])))
def test_warm_steps_have_every_form(monkeypatch: pytest.MonkeyPatch, arch: str, dim: int, group: int) -> None:
    """Prefill of any length, with and without rows beside it that stack to a small tile."""
    shape = AttentionShape(2 * group, 2, dim, 64)
    warm = {form(monkeypatch, arch, independent_rows(lengths), shape) for lengths in prefill_lengths(group)}
    draw = np.random.default_rng(group)
    for _ in range(60):
        drawn = draw.integers(1, draw.choice([3, 20, 500]), draw.integers(1, 5))
        assert form(monkeypatch, arch, independent_rows(drawn.tolist()), shape) in warm, drawn


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
