"""The one place that chooses device, dtype and attention backend."""

import os
import platform
import sys
from dataclasses import dataclass

from engine.config import DEFAULT_GPU_STEP_TOKENS, DEFAULT_STEP_TOKENS, EngineConfig, Quantization
from engine.errors import UserError
from engine.model.model_shape import ModelShape
from kernels.backend import Backend, backend_of
from kernels.kv_format import INT8_ROWS, KVFormat, kv_format_of
from kernels.processor import PROCESSOR, takes_bytes

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# What a core's float32 matmul sustains in a whole forward pass; replaced by a measured rate when one is known.
CPU_FLOPS_PER_CORE = 70e9
CUDA_FLOPS = 100e12
# Without one of them (NVIDIA's, AMD's, Windows' own) torch sees no GPU on Linux.
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


@dataclass(frozen=True, slots=True)
class Device:
    """`label` is what a person reads; `flops_per_second` is an expectation, used for time estimates and shard sizes."""

    name: str
    dtype: str
    flops_per_second: float
    label: str
    cores: int = 1

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def step_tokens(self) -> int:
        """Tokens of a step where nothing else is known."""
        return DEFAULT_GPU_STEP_TOKENS if self.backend == "triton" else DEFAULT_STEP_TOKENS

    def packs(self, shape: ModelShape) -> bool:
        """Whether layers and head are `engine.forward.cpu.fused_layer`'s."""
        return shape.can_fuse and self.backend == "torch" and self.dtype != "float16"

    def kv_format(self, shape: ModelShape, quantization: Quantization) -> KVFormat:
        """How keys and values are kept: as the model computes, but for 8 bits where layers and processor take them."""
        in_bytes = quantization == "int8" and self.dtype == "bfloat16" and takes_bytes(shape.head_dim)
        return INT8_ROWS if in_bytes and self.packs(shape) else kv_format_of(self.dtype)

    @property
    def described(self) -> str:
        """For a benchmark: on a CPU, with what loops are compiled for."""
        return f"{self.label}, {PROCESSOR if self.name == 'cpu' else platform.machine()}"

    @property
    def backend(self) -> Backend:
        return backend_of(self.name)


def resolve_device(config: EngineConfig) -> Device:
    """Raises UserError for a device that this machine lacks, an unknown dtype, or a quantization not built there."""
    if config.dtype not in ("auto", *DTYPE_BYTES):
        raise UserError(f"model.dtype: {config.dtype!r} is not one of auto, {', '.join(DTYPE_BYTES)}")
    if config.device not in ("auto", "cpu") and not config.device.startswith("cuda"):
        raise UserError(f"engine.device: {config.device!r} is not one of auto, cpu, cuda, cuda:N")
    if config.device == "cpu" or (config.device == "auto" and not _cuda_devices()):
        cores = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
        dtype = "float32" if config.dtype == "auto" else config.dtype
        if config.quantization in ("int4", "fp8"):
            raise UserError(
                f"model.quantization: {config.quantization} is for GPUs alone; take int8, or engine.device: cuda"
            )
        return Device("cpu", dtype, CPU_FLOPS_PER_CORE * cores, f"cpu ({cores} cores)", cores)
    index = int(config.device.partition(":")[2] or 0)
    if index >= _cuda_devices():
        raise UserError(f"engine.device: {config.device!r} asked for, but this machine has {_cuda_devices()} of them")
    dtype = "bfloat16" if config.dtype == "auto" else config.dtype
    device = Device(f"cuda:{index}", dtype, CUDA_FLOPS, f"cuda:{index}")
    if config.quantization != "none" and device.backend != "triton":
        raise UserError(f"model.quantization: {config.quantization} on cuda needs Triton; install it, or take none")
    if config.quantization == "fp8":
        _refuse_fp8(device)
    return device


def _refuse_fp8(device: Device) -> None:
    """Raises UserError for a GPU without FP8 units, or another dtype than the one that their products come in."""
    import torch

    if device.dtype != "bfloat16":
        raise UserError(f"model.dtype: fp8 computes in bfloat16, not {device.dtype}; take bfloat16 or auto")
    capability = torch.cuda.get_device_capability(device.name)
    if torch.version.hip is None and capability < (8, 9):
        name = torch.cuda.get_device_name(device.name)
        raise UserError(f"model.quantization: {name} multiplies no fp8 (it came with 8.9); take int8 or int4")


def _cuda_devices() -> int:
    if sys.platform == "linux" and not any(map(os.path.exists, DRIVERS)):
        return 0  # torch takes seconds to say the same
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
