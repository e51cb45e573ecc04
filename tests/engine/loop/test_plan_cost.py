"""A plan's rates: what was measured when the model last loaded here, else what the device says of itself."""

from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.device_rates import DeviceRates
from engine.loop import step_budget
from engine.loop.build import build_engine
from engine.loop.plan_cost import keep_step_times, plan_cost, step_weight_bytes
from engine.machine.device import resolve_device
from engine.machine.expected_rates import expected_rates
from engine.machine.machine_note import model_identity, write_note
from engine.model.checkpoint import load_shape, resolve_model
from engine.planning.cost import CostModel
from engine.planning.step_times import StepTimes
from kernels.kv_format import FLOAT32
from tests.engine.planning.test_virtual_run import SHAPE

OPEN = EngineConfig(device="cpu", dtype="float32", kv_cache_memory=2**22, max_num_batched_tokens=0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))


def test_what_was_measured_prices_a_plan(tiny_model: Path) -> None:
    files, device = resolve_model(str(tiny_model)), resolve_device(OPEN)
    shape = load_shape(files)
    note = {"tokens_per_second": {"128": 500.0, "256": 2000.0}, "num_layers": 1, "one_row_seconds": 0.25}
    write_note("step-tokens", note, *model_identity(files, OPEN, device))
    cost = plan_cost(files, shape, OPEN, device)
    # A token's matmuls in one layer, and its attention to half a piece of 128.
    token = 2 * shape.matmul_params / shape.num_layers + 4 * shape.num_heads * shape.head_dim * 129 / 2
    assert cost.rates == DeviceRates(2000 * token, 2000 * token, 4 * shape.matmul_params / 0.25)
    assert (cost.shape, cost.kv_format) == (shape, FLOAT32)
    assert cost.weight_bytes == 4 * (shape.matmul_params + shape.head_params)


@pytest.mark.parametrize(
    "note",
    [
        None,
        {"tokens_per_second": {"128": 500.0}},
        {"tokens_per_second": {}, "num_layers": 1, "one_row_seconds": 1.0},
        {"tokens_per_second": {"128": -1.0}, "num_layers": 1, "one_row_seconds": 1.0},
        {"tokens_per_second": {"128": 1.0}, "num_layers": 1, "one_row_seconds": float("nan")},
        ["nonsense"],
    ],
)
def test_what_was_not_or_makes_no_sense_is_expected(tiny_model: Path, note: Any) -> None:
    files, device = resolve_model(str(tiny_model)), resolve_device(OPEN)
    if note is not None:
        write_note("step-tokens", note, *model_identity(files, OPEN, device))
    assert plan_cost(files, load_shape(files), OPEN, device).rates == expected_rates(device)


def test_a_load_measures_it(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_budget, "LIMIT_SECONDS", 60.0)
    files, device = resolve_model(str(tiny_model)), resolve_device(OPEN)
    build_engine(files, OPEN, detokenize=False).close()
    rates = plan_cost(files, load_shape(files), OPEN, device).rates
    assert rates != expected_rates(device)
    assert 0 < rates.matmul_flops < 1e15
    assert 0 < rates.memory_bytes < 1e13


def test_fewer_bits_are_fewer_bytes_but_for_the_head(tiny_model: Path) -> None:
    shape = load_shape(resolve_model(str(tiny_model)))
    narrow = replace(OPEN, dtype="bfloat16", quantization="int8")
    read = {config: step_weight_bytes(shape, config, resolve_device(config)) for config in (OPEN, narrow)}
    assert read[narrow] == shape.matmul_params + 2 * shape.head_params
    assert read[OPEN] == 4 * shape.matmul_params + 4 * shape.head_params


TAUGHT = (0.5, 1.0, 2.0, 3.0, 4.0)


def taught(num_steps: int, rates: DeviceRates) -> StepTimes:
    """Times that say they have seen so many steps."""
    times = StepTimes(CostModel(SHAPE, FLOAT32, rates))
    times.num_steps = num_steps
    times.factors = lambda: TAUGHT  # type: ignore[method-assign]
    return times


def test_what_steps_took_is_kept_for_the_next_plan(tiny_model: Path) -> None:
    files, device = resolve_model(str(tiny_model)), resolve_device(OPEN)
    rates = plan_cost(files, load_shape(files), OPEN, device).rates
    keep_step_times(taught(63, rates), files, OPEN, device)
    assert plan_cost(files, load_shape(files), OPEN, device).step_factors == ()
    keep_step_times(taught(128, rates), files, OPEN, device)
    assert plan_cost(files, load_shape(files), OPEN, device).step_factors == TAUGHT


@pytest.mark.parametrize("factors", [[1.0], [1.0, 1.0, 1.0, 1.0, -1.0], [float("nan")] * 5, "nonsense", None])
def test_times_that_make_no_sense_or_are_of_other_rates_are_not_used(tiny_model: Path, factors: Any) -> None:
    files, device = resolve_model(str(tiny_model)), resolve_device(OPEN)
    rates = plan_cost(files, load_shape(files), OPEN, device).rates
    identity = *model_identity(files, OPEN, device), OPEN.kv_cache_dtype
    write_note("step-times", {"rates": astuple(rates), "factors": factors}, *identity)
    assert plan_cost(files, load_shape(files), OPEN, device).step_factors == ()
    write_note("step-times", {"rates": [1.0, 1.0, 1.0], "factors": TAUGHT}, *identity)
    assert plan_cost(files, load_shape(files), OPEN, device).step_factors == ()
