"""What a device is expected to sustain until it has been measured: from what the device says of itself."""

from typing import Protocol

from engine.config import Quantization
from engine.device_rates import DeviceRates
from engine.machine.device import Device
from kernels.known_gpus import KnownGpu
from kernels.processor import PROCESSOR

# Of a lane of a core, float32 in a whole forward pass: 70 GFLOP/s of a core of 16 lanes (AMD EPYC, Zen 5).
CPU_FLOPS_PER_LANE = 70e9 / 16
# Dense FLOPs in bfloat16 that a multiprocessor's matrix units do in a clock, by compute capability, as NVIDIA's papers
# have them: 4096 * 132 * 1.83e9 are an H100's 990 TFLOP/s. One that is not here is taken for the last below it.
FLOPS_PER_CLOCK = {(7, 0): 1024, (8, 0): 2048, (8, 6): 1024, (8, 9): 1024, (9, 0): 4096, (10, 0): 8192, (12, 0): 1024}
# AMD's, a compute unit, as its papers on CDNA have them.
AMD_FLOPS_PER_CLOCK = {"gfx90a": 1024, "gfx942": 2048, "gfx950": 4096}
# Without matrix units, or in float32: 128 lanes that multiply and add.
FLOAT32_FLOPS_PER_CLOCK = 256
# Matrix units that multiply numbers of 8 bits do twice as many in a clock as of 16.
NARROW = 2
# What matmuls and attention reach of that, and reads of the memory's bandwidth: 800 of 990 TFLOP/s, 305 in attention
# and 0.9 of the bandwidth on an H100 (docs/kernels.md).
MATMUL_SHARE, ATTENTION_SHARE, MEMORY_SHARE = 0.8, 0.3, 0.9


class GpuProperties(Protocol):
    """What is read of `torch.cuda.get_device_properties`: clocks in kHz, the bus in bits."""

    major: int
    minor: int
    multi_processor_count: int
    clock_rate: int
    memory_clock_rate: int
    memory_bus_width: int
    gcnArchName: str  # torch's name


def expected_rates(device: Device, quantization: Quantization = "none") -> DeviceRates:
    """A CPU's memory bandwidth is not known before it is measured: it says nothing of it."""
    if device.known is not None:
        return known_rates(device.known, device.dtype, quantization)
    if device.name == "cpu":
        flops = device.cores * PROCESSOR.lanes * CPU_FLOPS_PER_LANE
        return DeviceRates(flops, flops)
    import torch  # takes seconds, which a plan for a CPU need not wait

    properties, is_amd = torch.cuda.get_device_properties(device.name), torch.version.hip is not None
    return gpu_rates(properties, device.dtype, quantization, is_amd=is_amd)


def known_rates(gpu: KnownGpu, dtype: str, quantization: Quantization = "none") -> DeviceRates:
    """A data sheet's peaks times what is reached of them; attention computes as the model does, whatever its weights
    are kept in.
    """
    return DeviceRates(
        MATMUL_SHARE * gpu.matmul_peak(dtype, quantization),
        ATTENTION_SHARE * gpu.matmul_peak(dtype),
        MEMORY_SHARE * gpu.memory_bytes,
    )


def gpu_rates(
    properties: GpuProperties, dtype: str, quantization: Quantization = "none", *, is_amd: bool = False
) -> DeviceRates:
    """Peaks by number of multiprocessors, clock and memory bus, times what is reached of them."""
    per_clock = FLOAT32_FLOPS_PER_CLOCK
    if dtype != "float32" and is_amd:
        per_clock = AMD_FLOPS_PER_CLOCK.get(properties.gcnArchName.partition(":")[0], FLOAT32_FLOPS_PER_CLOCK)
    elif dtype != "float32":
        capability = (properties.major, properties.minor)
        known = [least for least in FLOPS_PER_CLOCK if least <= capability]
        per_clock = FLOPS_PER_CLOCK[max(known)] if known else FLOAT32_FLOPS_PER_CLOCK
    flops = properties.multi_processor_count * 1e3 * properties.clock_rate * per_clock
    # Two transfers a clock.
    memory = 2 * 1e3 * properties.memory_clock_rate * properties.memory_bus_width / 8
    narrow = NARROW if quantization in ("fp8", "int8") else 1
    return DeviceRates(MATMUL_SHARE * flops * narrow, ATTENTION_SHARE * flops, MEMORY_SHARE * memory)
