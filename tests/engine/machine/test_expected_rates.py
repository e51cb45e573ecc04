"""What devices are expected to sustain, from their own properties, against the vendors' figures."""

from dataclasses import dataclass

import pytest

from engine.bench.workload import Rows, choice, generate, to_request
from engine.config import EngineConfig, Quantization
from engine.errors import UserError
from engine.machine.device import Device, device_not_here
from engine.machine.expected_rates import (
    ATTENTION_SHARE,
    CPU_FLOPS_PER_LANE,
    MATMUL_SHARE,
    MEMORY_SHARE,
    expected_rates,
    gpu_rates,
    known_rates,
)
from engine.model.model_shape import ModelShape
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan
from kernels.known_gpus import KNOWN_GPUS, known_gpu
from kernels.kv_format import BFLOAT16
from kernels.processor import PROCESSOR


@dataclass
class Properties:
    major: int
    minor: int
    multi_processor_count: int
    clock_rate: int
    memory_clock_rate: int
    memory_bus_width: int
    gcnArchName: str = ""


H100 = Properties(9, 0, 132, 1_830_000, 2_619_000, 5120)
A100 = Properties(8, 0, 108, 1_410_000, 1_215_000, 5120)
L4 = Properties(8, 9, 58, 2_040_000, 6_251_000, 192)
MI300X = Properties(9, 4, 304, 2_100_000, 2_600_000, 8192, "gfx942:sramecc+:xnack-")


@pytest.mark.parametrize(
    ("properties", "is_amd", "tera_flops", "giga_bytes"),
    [(H100, False, 989, 3352), (A100, False, 312, 1555), (L4, False, 121, 300), (MI300X, True, 1307, 5325)],
    ids=["H100", "A100", "L4", "MI300X"],
)
def test_a_gpus_peaks_are_those_that_its_maker_says(
    properties: Properties, is_amd: bool, tera_flops: float, giga_bytes: float
) -> None:
    rates = gpu_rates(properties, "bfloat16", is_amd=is_amd)
    assert rates.matmul_flops / MATMUL_SHARE / 1e12 == pytest.approx(tera_flops, rel=0.005)
    assert rates.attention_flops / ATTENTION_SHARE / 1e12 == pytest.approx(tera_flops, rel=0.005)
    assert rates.memory_bytes / MEMORY_SHARE / 1e9 == pytest.approx(giga_bytes, rel=0.005)


def test_float32_does_without_matrix_units() -> None:
    assert gpu_rates(H100, "float32").matmul_flops == pytest.approx(MATMUL_SHARE * 132 * 1.83e9 * 256, rel=1e-12)


def test_an_architecture_that_is_not_known_is_taken_for_the_last_below() -> None:
    def flops_per_clock(major: int, minor: int, name: str = "", *, is_amd: bool = False) -> float:
        one = Properties(major, minor, 1, 1, 1, 8, name)
        return round(gpu_rates(one, "float16", is_amd=is_amd).matmul_flops / MATMUL_SHARE / 1e3, 6)

    assert [flops_per_clock(*capability) for capability in ((6, 1), (7, 5), (8, 7), (9, 3), (13, 0))] == [
        256,
        1024,
        1024,
        4096,
        1024,
    ]
    assert flops_per_clock(9, 9, "gfx1100", is_amd=True) == 256


def test_a_cpu_is_its_cores_and_the_width_of_their_registers() -> None:
    rates = expected_rates(Device("cpu", "float32", "cpu (3 cores)", 3))
    assert rates.matmul_flops == rates.attention_flops == 3 * PROCESSOR.lanes * CPU_FLOPS_PER_LANE
    assert rates.memory_bytes == float("inf")


@pytest.mark.parametrize(
    ("properties", "is_amd", "name"),
    [(H100, False, "h100"), (A100, False, "a100-40gb"), (L4, False, "l4"), (MI300X, True, "mi300x")],
    ids=["H100", "A100", "L4", "MI300X"],
)
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_data_sheet_says_what_the_device_says(
    properties: Properties, is_amd: bool, name: str, quantization: Quantization
) -> None:
    gpu = known_gpu(name)
    assert gpu is not None
    said, own = (
        known_rates(gpu, "bfloat16", quantization),
        gpu_rates(properties, "bfloat16", quantization, is_amd=is_amd),
    )
    assert said.matmul_flops == pytest.approx(own.matmul_flops, rel=0.005)
    assert said.attention_flops == pytest.approx(own.attention_flops, rel=0.005)
    assert said.memory_bytes == pytest.approx(own.memory_bytes, rel=0.006)


LLAMA_1B = ModelShape(16, 2048, 32, 8, 64, 8192, 128_256, 131_072)
LLAMA_8B = ModelShape(32, 4096, 32, 8, 128, 14_336, 128_256, 131_072)
SHARED_2000 = generate(groups=8, degree=32, prefix=2000, distinct=200, output=100)
# docs/benchmarks.md, against vLLM on a GPU: seconds that an H100 took.
MEASURED: list[tuple[ModelShape, Rows, Quantization, float]] = [
    (LLAMA_1B, SHARED_2000, "none", 0.61),
    (LLAMA_8B, SHARED_2000, "none", 2.95),
    (LLAMA_8B, SHARED_2000, "fp8", 2.17),
    (LLAMA_8B, generate(groups=32, degree=16, prefix=2000, distinct=200, output=100), "none", 6.37),
    (LLAMA_8B, choice(groups=8, degree=16, prefix=1000, distinct=80, labels=4, label_tokens=3), "none", 0.48),
]


@pytest.mark.parametrize(("shape", "rows", "quantization", "seconds"), MEASURED)
def test_a_plan_for_an_h100_is_near_what_one_took(
    shape: ModelShape, rows: Rows, quantization: Quantization, seconds: float
) -> None:
    """Never more, and at least 0.6 of it: launches between products, and small products, are not in the plan."""
    config = EngineConfig(quantization=quantization, kv_cache_memory=50 * 2**30)
    device = device_not_here("h100", config)
    weights = shape.matmul_params * (1 if quantization == "fp8" else 2) + 2.0 * shape.head_params
    cost = CostModel(shape, BFLOAT16, expected_rates(device, quantization), weights)
    planned = make_plan([to_request(row) for row in rows], config, cost).summary.expected_seconds
    assert 0.6 * seconds < planned < seconds


def test_a_gpu_that_is_not_here_computes_what_it_has_units_for() -> None:
    device = device_not_here("H100", EngineConfig(quantization="fp8", kv_cache_dtype="fp8"))
    assert (device.dtype, device.backend, device.step_tokens) == ("bfloat16", "triton", 8192)
    for key in ("quantization", "kv_cache_dtype"):
        with pytest.raises(UserError, match=f"model.{key}: NVIDIA A100 40GB "):
            device_not_here("a100-40gb", EngineConfig(**{key: "fp8"}))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"model\.dtype: fp8 computes in bfloat16, not float32"):
        device_not_here("h100", EngineConfig(quantization="fp8", dtype="float32"))


def test_every_known_gpu_is_sourced_and_named_once() -> None:
    names = [name for gpu in KNOWN_GPUS for name in (gpu.name, *gpu.driver_names)]
    assert len(set(names)) == len(names)
    assert [gpu.name for gpu in KNOWN_GPUS] == sorted(gpu.name for gpu in KNOWN_GPUS)
    for gpu in KNOWN_GPUS:
        assert ("data sheet" in gpu.source) or ("white paper" in gpu.source)
        assert (gpu.fp8 > 0) == (gpu.capability >= (8, 9))
