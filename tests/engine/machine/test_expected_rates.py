"""What devices are expected to sustain, from their own properties, against the vendors' figures."""

from dataclasses import dataclass

import pytest

from engine.machine.device import Device
from engine.machine.expected_rates import (
    ATTENTION_SHARE,
    CPU_FLOPS_PER_LANE,
    MATMUL_SHARE,
    MEMORY_SHARE,
    expected_rates,
    gpu_rates,
)
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
