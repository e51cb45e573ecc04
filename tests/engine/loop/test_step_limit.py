"""A step's limit: the rate of a loaded model's largest layer, and what a step has to compute at that rate."""

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from engine.config import EngineConfig
from engine.forward.load import load_model
from engine.loop import step_limit
from engine.loop.step_limit import StepLimit, num_weights, product_flops
from engine.machine.device import resolve_device
from engine.model.checkpoint import load_shape, resolve_model
from engine.scheduling.reads import Reads
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.segments import Segment, Segments


class Clock:
    """Every look at it is a second later."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now


def test_the_layer_with_the_most_weights_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_limit, "time", Clock())
    wide = nn.Linear(1000, 2000).bfloat16()
    assert product_flops([nn.Linear(10, 10), wide]) == 2 * 1000 * 2000 * step_limit.MIN_ROWS
    assert product_flops([nn.Linear(10, 10)]) == 2 * 10 * 10 * step_limit.MAX_ROWS
    assert product_flops([]) == 0


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_every_matrix_of_a_loaded_model_is_found(tiny_model: Path, quantization: str) -> None:
    """Packed, fused and gated ones too, of two layers."""
    model = resolve_model(str(tiny_model))
    config = EngineConfig(device="cpu", quantization=quantization)  # type: ignore[arg-type]
    device, shape = resolve_device(config), load_shape(model)
    loaded = load_model(model, device, config.quantization, config.kv_cache_dtype)
    found = sum(num_weights(layer) for layer in loaded.linear_layers())
    assert found == shape.matmul_params
    limit = StepLimit(shape, config, device)
    numbers = np.arange(3)
    reads = Reads.samples(np.array([2]), np.array([0]))
    step = SchedulerOutput(numbers, numbers, numbers, Segments.of([Segment(0, 3, 0, 3, 0)]), reads, 3, 0, 0)
    assert limit.seconds(step) == 0
    limit.load(loaded)
    assert 0 < limit.seconds(step) < 1
