"""The cost model of a job's plan: a model's sizes, and what its device sustains, measured here or expected."""

from dataclasses import astuple
from math import isfinite

from engine.config import EngineConfig
from engine.device_rates import DeviceRates
from engine.loop.step_budget import PIECE, read_measured
from engine.machine.device import Device
from engine.machine.expected_rates import expected_rates
from engine.machine.machine_note import model_identity, read_note, write_note
from engine.model.checkpoint import ModelFiles
from engine.model.linear_schemes import linear_scheme
from engine.model.model_shape import ModelShape
from engine.planning.cost import CostModel
from engine.planning.step_times import NUM_FACTORS, StepTimes

# Steps before which nothing is kept: warm ones outweigh the first.
FIRST_KEPT = 64


def plan_cost(model: ModelFiles, shape: ModelShape, config: EngineConfig, device: Device) -> CostModel:
    """Needs no weights; what is measured while a model loads is read from the cache."""
    weight_bytes = step_weight_bytes(shape, config, device)
    rates = measured_rates(model, shape, config, device) or expected_rates(device, config.quantization)
    kv_format = device.kv_format(shape, config.quantization, config.kv_cache_dtype)
    return CostModel(shape, kv_format, rates, weight_bytes, _kept_factors(rates, model, config, device))


def keep_step_times(times: StepTimes, model: ModelFiles, config: EngineConfig, device: Device) -> None:
    """Keeps what was learnt for the next plan on this machine, twice as many steps apart each time."""
    if times.num_steps >= FIRST_KEPT and times.num_steps & (times.num_steps - 1) == 0:
        content = {"rates": astuple(times.rates), "factors": times.factors(), "num_steps": times.num_steps}
        write_note("step-times", content, *model_identity(model, config, device), config.kv_cache_dtype)


def _kept_factors(rates: DeviceRates, model: ModelFiles, config: EngineConfig, device: Device) -> tuple[float, ...]:
    """Those that multiply what these rates say; empty where there are none."""
    note = read_note("step-times", *model_identity(model, config, device), config.kv_cache_dtype)
    try:
        factors = tuple(map(float, note["factors"]))
        fits = tuple(note["rates"]) == astuple(rates) and len(factors) == NUM_FACTORS
    except (ValueError, KeyError, TypeError):
        return ()
    return factors if fits and min(factors) >= 0 and isfinite(sum(factors)) else ()


def step_weight_bytes(shape: ModelShape, config: EngineConfig, device: Device) -> float:
    """What a step reads: of a mixture of experts those that one token runs, and the head in the model's dtype."""
    return _body_bytes(shape, config, device) + shape.head_params * device.dtype_bytes


def measured_rates(model: ModelFiles, shape: ModelShape, config: EngineConfig, device: Device) -> DeviceRates | None:
    """What `engine.loop.step_budget` measured on this machine; None where it has not.

    FLOP/s are those of its fastest step, in which a few layers run pieces of prompts: matmuls and attention together.
    Bytes are the body's weights over the time of one row, which waits for little else.
    """
    measured = read_measured(model, config, device)
    if measured is None or not measured.num_layers or not measured.one_row_seconds:
        return None
    piece = min(PIECE, shape.max_model_len)
    attention = 4.0 * shape.num_heads * shape.head_dim * (piece + 1) / 2
    token = measured.num_layers * (2.0 * shape.matmul_params / shape.num_layers + attention)
    flops = max(measured.tokens_per_second.values()) * token
    return DeviceRates(flops, flops, _body_bytes(shape, config, device) / measured.one_row_seconds)


def _body_bytes(shape: ModelShape, config: EngineConfig, device: Device) -> float:
    bits = linear_scheme(config.quantization, device.backend).weight_bits or 8 * device.dtype_bytes
    return shape.matmul_params * bits / 8
