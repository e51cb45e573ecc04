"""A step's tokens: chosen from rates, measured once, the same for plan and engine."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.config import DEFAULT_STEP_TOKENS, EngineConfig
from engine.device_rates import DeviceRates
from engine.forward.forward_output import Forward
from engine.forward.model_runner import ModelRunner
from engine.loop import step_budget
from engine.loop.build import build_engine
from engine.loop.step_budget import choose, known_step_tokens, planning_config, rates_by_round, settled
from engine.machine import memory
from engine.machine.device import Device, resolve_device
from engine.machine.machine_note import model_identity, write_note
from engine.model.checkpoint import load_shape, resolve_model
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan
from engine.request import Request
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.kv_format import FLOAT32

SIZES = step_budget.SIZES["torch"]
CPU = Device("cpu", "float32", "cpu")
OPEN = EngineConfig(device="cpu", kv_cache_memory=2**22, max_num_batched_tokens=0)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("per_second", "chosen"),
    [
        ((100, 100, 100, 100, 100), 1024),
        ((102, 101, 100, 100, 104), 1024),
        ((100, 200, 300, 400, 500), 2048),
        ((100, 200, 300, 301, 302), 1024),
        ((500, 400, 300, 200, 100), 128),
        ((100, 120, 125, 100, 126), 2048),
        ((100, 150, 125, 100, 126), 256),
    ],
    ids=["flat", "noise", "rising", "level", "falling", "the larger of those alike", "small"],
)
def test_the_default_unless_another_is_clearly_faster(per_second: tuple[float, ...], chosen: int) -> None:
    assert choose([dict(zip(SIZES, per_second, strict=True))] * 3, CPU) == chosen


def test_what_one_round_says_alone_is_noise() -> None:
    flat = dict.fromkeys(SIZES, 100.0)
    assert choose([flat | {128: 300.0}, flat | {2048: 150.0}, flat], CPU) == DEFAULT_STEP_TOKENS
    assert choose([flat | {2048: 150.0}, flat | {2048: 112.0}, flat | {2048: 130.0}], CPU) == 2048


# Tokens a second of SmolLM2-135M, one thread's own time: float32, bfloat16 and int8 over it on an EPYC (Zen 5).
TRUE_RATES = [
    (5762, 6410, 6802, 6957, 6992),
    (11800, 13702, 13881, 13699, 14100),
    (13720, 15880, 17209, 18197, 18933),
]


@pytest.mark.parametrize("rates", TRUE_RATES, ids=["float32", "bfloat16", "int8"])
def test_measurements_agree_where_a_machine_is_noisy(rates: tuple[int, ...]) -> None:
    """A thousand of them, each time off by up to 8 %, are one choice."""
    draw = np.random.default_rng(0)
    slower = 1 + 0.08 * draw.random((1000, step_budget.ROUNDS, len(SIZES)))
    chosen = {choose([dict(zip(SIZES, rates / one, strict=True)) for one in rounds], CPU) for rounds in slower}
    assert chosen == {DEFAULT_STEP_TOKENS}


def test_a_measurement_that_was_cut_short_decides_nothing() -> None:
    rounds = rates_by_round(lambda _: step_budget.LIMIT_SECONDS, SIZES)
    assert [list(rates) for rates in rounds] == [[SIZES[0], SIZES[1]]]
    assert choose(rounds, CPU) == DEFAULT_STEP_TOKENS


def test_rounds_are_told_apart_and_the_best_of_all_is_known() -> None:
    taken = iter([0.01] * len(SIZES) + [0.02, 0.005] + [0.02] * (len(SIZES) - 2) + [0.04] * len(SIZES))
    rounds = rates_by_round(lambda _: next(taken), SIZES)
    assert [rates[128] for rates in rounds] == [128 / 0.01, 128 / 0.02, 128 / 0.04]
    best = step_budget.Measured(rounds).tokens_per_second
    assert best == {size: size / (0.005 if size == SIZES[1] else 0.01) for size in SIZES}


def test_a_gpu_takes_as_many_as_16384() -> None:
    gpu, sizes = Device("cuda:0", "bfloat16", "cuda:0"), step_budget.SIZES["triton"]
    rising = [{size: float(size) for size in sizes}] * 3
    assert (sizes[-1], choose(rising, gpu)) == (16_384, 16_384)
    assert choose([dict.fromkeys(sizes, 1.0)] * 3, gpu) == 8192


def test_a_gpus_memory_is_settled_for_the_largest_step_that_it_may_take(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KV takes all that a step leaves: one that is measured later is no larger than the default."""
    files, gpu = resolve_model(str(tiny_model)), Device("cuda:0", "bfloat16", "cuda:0")
    shape, auto = load_shape(files), replace(OPEN, kv_cache_memory=0)
    rising = {size: float(size) for size in step_budget.SIZES["triton"]}
    need = memory.memory_need(files, shape, auto, gpu).total
    monkeypatch.setattr(memory, "device_memory", lambda _: 80 * 2**30)
    early = settled(files, shape, auto, gpu)
    assert early == memory.settled(files, shape, auto, gpu)
    write_note("step-tokens", {"rounds": [rising] * 3}, *model_identity(files, auto, gpu))
    assert known_step_tokens(files, early, gpu) == 8192
    later = settled(files, shape, auto, gpu)
    assert known_step_tokens(files, later, gpu) == later.max_num_batched_tokens == 16_384
    assert memory.memory_need(files, shape, later, gpu).total == memory.memory_need(files, shape, early, gpu).total
    # It may take a tenth of the KV.
    more = memory.memory_need(files, shape, replace(auto, max_num_batched_tokens=16_384), gpu).total - need
    for left, tokens in ((more, 0), (9 * more, 0), (11 * more, 16_384)):
        bound = (need + memory.GPU_RESERVE + left) / auto.gpu_memory_utilization
        monkeypatch.setattr(memory, "device_memory", lambda _, bound=bound: bound)
        assert settled(files, shape, auto, gpu).max_num_batched_tokens == tokens
    assert settled(files, shape, replace(auto, kv_cache_memory=2**30), gpu).max_num_batched_tokens == 0


def test_a_size_that_there_is_no_memory_for_is_not_taken(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, device, forward = resolve_model(str(tiny_model)), resolve_device(OPEN), ModelRunner.forward

    def short(runner: ModelRunner, step: SchedulerOutput) -> Forward:
        if step.num_scheduled_tokens > 512:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(runner, step)

    monkeypatch.setattr(step_budget, "LIMIT_SECONDS", 60.0)
    with monkeypatch.context() as patch:
        patch.setattr(ModelRunner, "forward", short)
        engine = build_engine(files, OPEN, detokenize=False)
        engine.close()
    assert engine.config.max_num_batched_tokens <= 512
    measured = step_budget.read_measured(files, OPEN, device)
    assert measured is not None
    assert [rates[2048] for rates in measured.rounds] == [0.0] * step_budget.ROUNDS
    assert planning_config(files, OPEN, device) == engine.config


def test_measured_once_and_then_known(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, device = resolve_model(str(tiny_model)), resolve_device(OPEN)
    assert known_step_tokens(files, OPEN, device) is None
    assert planning_config(files, OPEN, device).max_num_batched_tokens == DEFAULT_STEP_TOKENS
    monkeypatch.setattr(step_budget, "LIMIT_SECONDS", 60.0)
    first = build_engine(files, OPEN, detokenize=False)
    first.close()
    chosen = first.config.max_num_batched_tokens
    assert chosen in SIZES
    assert first.scheduler.config == first.config == planning_config(files, OPEN, device)
    assert len(first.runner.model.body.layers) == first.runner.model.shape.num_layers

    monkeypatch.delattr(step_budget, "measure")
    second = build_engine(files, OPEN, detokenize=False)
    second.close()
    assert second.config.max_num_batched_tokens == chosen


def test_another_precision_is_another_measurement(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, device = resolve_model(str(tiny_model)), resolve_device(OPEN)
    rates = {size: 2.0 if size == 512 else 1.0 for size in SIZES}
    write_note("step-tokens", {"tokens_per_second": rates}, *model_identity(files, OPEN, device))
    assert known_step_tokens(files, OPEN, device) == 512
    assert known_step_tokens(files, replace(OPEN, quantization="int8"), device) is None
    assert known_step_tokens(files, OPEN, replace(device, label="cpu (64 cores)")) is None


def test_what_the_job_says_comes_first(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = replace(OPEN, max_num_batched_tokens=77)
    monkeypatch.delattr(step_budget, "measure")
    engine = build_engine(resolve_model(str(tiny_model)), said, detokenize=False)
    engine.close()
    assert engine.config.max_num_batched_tokens == engine.scheduler.config.max_num_batched_tokens == 77


def test_a_cache_that_cannot_be_written_is_no_error(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = resolve_model(str(tiny_model))
    (tmp_path / "cache" / "step-tokens").write_text("a file in the folder's place")
    monkeypatch.setattr(step_budget, "LIMIT_SECONDS", 60.0)
    engine = build_engine(files, OPEN, detokenize=False)
    engine.close()
    assert engine.config.max_num_batched_tokens in SIZES


def test_names_of_plans_and_shards_do_not_follow_it(tiny_model: Path) -> None:
    shape = load_shape(resolve_model(str(tiny_model)))
    draw = np.random.default_rng(0)
    prompts = [np.append(np.full(40, row // 4), draw.integers(0, 99, 5)).astype(np.int32) for row in range(40)]
    requests = [Request(str(row), prompt) for row, prompt in enumerate(prompts)]
    cost = CostModel(shape, FLOAT32, DeviceRates(1e6, 1e6))
    plans = [
        make_plan(
            requests,
            replace(OPEN, max_num_batched_tokens=tokens),
            cost,
            shard_seconds=20.0,
        )
        for tokens in (16, 1024)
    ]
    assert len(plans[0].shards) > 1
    assert plans[0].layout_id == plans[1].layout_id
    assert plans[0].shards == plans[1].shards
