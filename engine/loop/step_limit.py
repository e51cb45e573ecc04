"""What a device at its limit would take for a step, to which the step's own time is held."""

import time
from collections.abc import Sequence

import torch
from torch import nn

from engine.config import EngineConfig
from engine.device_rates import DeviceRates
from engine.forward.loaded_model import LoadedModel
from engine.loop.plan_cost import step_weight_bytes
from engine.machine.device import Device
from engine.machine.expected_rates import expected_rates
from engine.machine.out_of_memory import is_out_of_memory
from engine.model.model_shape import ModelShape
from engine.planning.cost import CostModel
from engine.scheduling.scheduler_output import SchedulerOutput

# A product that is timed has so many FLOPs, where that is rows enough to be busy with, and no more than a step has.
PRODUCT_FLOPS = 2.5e8
MIN_ROWS, MAX_ROWS = 64, 512
MIN_ROUNDS, MAX_ROUNDS, MAX_SECONDS = 3, 12, 0.05


class StepLimit:
    """Seconds that a step takes at the least: its FLOPs at the fastest rate there is, or on a GPU its bytes.

    A GPU's rates are its data sheet's. A processor's sheet has none that its cores keep: the body's own largest layer
    is timed alone, behind the first step, because a run may read its rows on the same cores while the model loads. What
    plans are priced by is the rate of whole passes, and no limit.
    """

    def __init__(self, shape: ModelShape, config: EngineConfig, device: Device) -> None:
        self._shape, self._config, self._device = shape, config, device
        self._model: LoadedModel | None = None
        self._cost: CostModel | None = None
        self._computes_logits = True

    def load(self, model: LoadedModel) -> None:
        """The rate is that of the loaded model."""
        self._model = model

    def seconds(self, step: SchedulerOutput) -> float:
        """0 where nothing is known. For the thread that computes, between steps: the first call may time a product."""
        model, self._model = self._model, None
        if model is not None:
            try:
                self._learn(model)
            except (RuntimeError, MemoryError) as problem:
                if not is_out_of_memory(problem):
                    raise
                # There is no limit then: what is left of the memory is for the steps.
        return 0.0 if self._cost is None else self._cost.step_limit(step, computes_logits=self._computes_logits)

    def _learn(self, model: LoadedModel) -> None:
        device = self._device
        if device.name == "cpu":
            flops = product_flops(model.linear_layers())
            rates, weight_bytes = DeviceRates(flops, flops), 0.0
        else:
            rates = expected_rates(device, self._config.quantization)
            weight_bytes = step_weight_bytes(self._shape, self._config, device)
        if rates.matmul_flops:
            self._cost = CostModel(self._shape, model.kv_format, rates, weight_bytes)
        self._computes_logits = not model.is_screened


@torch.inference_mode()
def product_flops(layers: Sequence[nn.Module]) -> float:
    """A second's FLOPs of the layer with the most weights, the best of some rounds; 0 without layers."""
    if not layers:
        return 0.0
    layer = max(layers, key=num_weights)
    flops = 2.0 * num_weights(layer)
    dtype = layer.weight.dtype if isinstance(layer, nn.Linear) else torch.float32
    rows = torch.ones(min(max(int(PRODUCT_FLOPS / flops), MIN_ROWS), MAX_ROWS), width(layer), dtype=dtype)
    began, seconds = time.perf_counter(), list[float]()
    # The first round touches memory that later ones find; another program's moment may hit the second.
    while len(seconds) < MIN_ROUNDS or (len(seconds) < MAX_ROUNDS and time.perf_counter() - began < MAX_SECONDS):
        started = time.perf_counter()
        layer(rows)
        seconds.append(time.perf_counter() - started)
    return flops * len(rows) / min(seconds)


def width(layer: nn.Module) -> int:
    """Of the rows that it takes."""
    return int(layer.in_features)  # type: ignore[arg-type]


def num_weights(layer: nn.Module) -> int:
    """Of its matrix; a layer that gates has two outputs for one."""
    return int(getattr(layer, "num_weights", width(layer) * int(layer.out_features)))  # type: ignore[arg-type]
