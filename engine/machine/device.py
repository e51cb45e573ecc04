"""The one place that chooses device, dtype and attention backend."""

import os
import platform
import sys
from dataclasses import dataclass, replace

from engine.config import DEFAULT_GPU_STEP_TOKENS, DEFAULT_STEP_TOKENS, EngineConfig, KVCacheDtype, Quantization
from engine.errors import UserError
from engine.model.linear_schemes import LinearScheme, linear_scheme
from engine.model.model_shape import ModelShape
from engine.model.tensor_parallel import TENSOR_PARALLEL, refuse_parts
from kernels.backend import Backend, backend_of
from kernels.known_gpus import KNOWN_GPUS, KnownGpu, known_gpu
from kernels.kv_format import FP8, INT8_ROWS, KVFormat, kv_format_of
from kernels.processor import PROCESSOR, takes_bytes

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# What Triton compiles for, and with bfloat16; FP8 units came later.
LEAST_CAPABILITY, FP8_CAPABILITY = (8, 0), (8, 9)
# Without one of them (NVIDIA's, AMD's, Windows' own) torch sees no GPU on Linux.
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


@dataclass(frozen=True, slots=True)
class Device:
    """`label` is what a person reads; what a device sustains is `engine.machine.expected_rates`'s to say.

    `known` is set where it need not be in this machine, which a plan alone is for.
    """

    name: str
    dtype: str
    label: str
    cores: int = 1
    known: KnownGpu | None = None

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def step_tokens(self) -> int:
        """Tokens of a step where nothing else is known."""
        return DEFAULT_GPU_STEP_TOKENS if self.backend == "triton" else DEFAULT_STEP_TOKENS

    def packs(self, shape: ModelShape) -> bool:
        """Whether layers and head are `engine.forward.cpu.fused_layer`'s."""
        return self.backend == "torch" and "torch" in shape.fused_on and self.dtype != "float16"

    def kv_format(
        self, shape: ModelShape, quantization: Quantization, kv_cache_dtype: KVCacheDtype = "auto"
    ) -> KVFormat:
        """How keys and values are kept: as the model computes, but for 8 bits where layers and processor take them."""
        if kv_cache_dtype == "fp8":
            return FP8
        in_bytes = quantization == "int8" and self.dtype == "bfloat16" and takes_bytes(shape.head_dim)
        return INT8_ROWS if in_bytes and self.packs(shape) else kv_format_of(self.dtype)

    @property
    def described(self) -> str:
        """For a benchmark: on a CPU, with what loops are compiled for."""
        return f"{self.label}, {PROCESSOR if self.name == 'cpu' else platform.machine()}"

    @property
    def backend(self) -> Backend:
        return "triton" if self.known is not None else backend_of(self.name)

    def shared_by(self, workers: int, ranks: int = 1) -> "Device":
        """What each rank of so many engines has of it: of a processor its part of the cores, of a GPU, which is one's,
        all.

        Raises UserError for more of them than cores.
        """
        if self.name != "cpu" or workers * ranks < 2:
            return self
        if workers * ranks > self.cores:
            keys = {"engine.workers": workers, TENSOR_PARALLEL: ranks}
            many = " times ".join(f"{key}: {count}" for key, count in keys.items() if count > 1)
            raise UserError(f"{many} are more than the {self.cores} cores that there are")
        cores = self.cores // (workers * ranks)
        return replace(self, label=_cpu_label(cores), cores=cores)


def resolve_device(config: EngineConfig) -> Device:
    """Raises UserError for a device that this machine lacks, an unknown dtype, or a quantization not built there.

    Of an engine of several ranks it is the first one's.
    """
    _refuse_dtype(config)
    refuse_parts(config)
    if config.device not in ("auto", "cpu") and not config.device.startswith("cuda"):
        raise UserError(f"engine.device: {config.device!r} is not one of auto, cpu, cuda, cuda:N")
    if config.device == "cpu" or (config.device == "auto" and not cuda_devices()):
        cores = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
        dtype = "float32" if config.dtype == "auto" else config.dtype
        linear_scheme(config.quantization, "torch")
        if config.kv_cache_dtype == "fp8":
            raise UserError("model.kv_cache_dtype: fp8 is for GPUs alone; take auto, or engine.device: cuda")
        return Device("cpu", dtype, _cpu_label(cores), cores)
    index = int(config.device.partition(":")[2] or 0)
    if index >= cuda_devices():
        raise UserError(
            f"engine.device: {config.device!r} asked for, but torch sees {cuda_devices()} here; take auto or cpu"
        )
    if config.tensor_parallel > cuda_devices():
        raise UserError(
            f"{TENSOR_PARALLEL}: {config.tensor_parallel} are more than the {cuda_devices()} GPUs there are"
        )
    return _checked(Device(f"cuda:{index}", _gpu_dtype(config), f"cuda:{index}"), config)


def _cpu_label(cores: int) -> str:
    return f"cpu ({cores} cores)"


def device_not_here(name: str, config: EngineConfig) -> Device:
    """The GPU of this name in `kernels.known_gpus`, to plan for. Raises UserError for a name that is not there, or a
    quantization that the GPU has no units for.
    """
    _refuse_dtype(config)
    refuse_parts(config)
    gpu = known_gpu(name)
    if gpu is None:
        raise UserError(f"--device: {name!r} is not one of {', '.join(one.name for one in KNOWN_GPUS)}")
    return _checked(Device("cuda:0", _gpu_dtype(config), gpu.label, known=gpu), config)


def _refuse_dtype(config: EngineConfig) -> None:
    if config.dtype not in ("auto", *DTYPE_BYTES):
        raise UserError(f"model.dtype: {config.dtype!r} is not one of auto, {', '.join(DTYPE_BYTES)}")


def _gpu_dtype(config: EngineConfig) -> str:
    return "bfloat16" if config.dtype == "auto" else config.dtype


def _checked(device: Device, config: EngineConfig) -> Device:
    """A GPU that computes as `config` says, else a UserError."""
    if config.determinism == "strict":
        raise UserError("engine.determinism: strict is for the CPU alone; take engine.device: cpu, or default")
    if config.quantization != "none" and device.backend != "triton":
        raise UserError(f"model.quantization: {config.quantization} on cuda needs Triton; install it, or take none")
    _refuse_scheme(linear_scheme(config.quantization, device.backend), device)
    if config.kv_cache_dtype == "fp8":
        _refuse_fp8_kv(device)
    return device


def refuse_old(device: Device) -> None:
    """Raises UserError for a GPU that kernels cannot be compiled for.

    It asks the driver, which then holds memory of the GPU for who asks: an engine's process, never its run's.
    """
    if device.backend == "triton" and nvidia_capability(device) < LEAST_CAPABILITY:
        have, least = (".".join(map(str, one)) for one in (nvidia_capability(device), LEAST_CAPABILITY))
        raise UserError(f"engine.device: {_cuda_name(device)} has capability {have}, kernels need {least}; take cpu")


def _refuse_fp8_kv(device: Device) -> None:
    """Raises UserError for a GPU without Triton, whose kernels read such keys, or without FP8 units."""
    if device.backend != "triton":
        raise UserError("model.kv_cache_dtype: fp8 on cuda needs Triton; install it, or take auto")
    if nvidia_capability(device) < FP8_CAPABILITY:
        raise UserError(f"model.kv_cache_dtype: {_cuda_name(device)} has no FP8 units (they came with 8.9); take auto")


def _refuse_scheme(scheme: LinearScheme, device: Device) -> None:
    """Raises UserError for a dtype that the scheme's activations do not come in, or a GPU without its units."""
    name = scheme.quantization
    if device.dtype not in scheme.dtypes:
        raise UserError(
            f"model.dtype: {name} computes in {scheme.dtypes[0]}, not {device.dtype}; take {scheme.dtypes[0]} or auto"
        )
    if scheme.capability > (0, 0) and scheme.capability > nvidia_capability(device):
        came = ".".join(map(str, scheme.capability))
        raise UserError(
            f"model.quantization: {_cuda_name(device)} multiplies no {name} (it came with {came}); take int8 or int4"
        )


def can_run(device: Device, scheme: LinearScheme) -> bool:
    """Whether a GPU has the units that a scheme's kernel multiplies with."""
    return device.dtype in scheme.dtypes and (
        not any(scheme.capability) or scheme.capability <= nvidia_capability(device)
    )


def nvidia_capability(device: Device) -> tuple[int, int]:
    """Above all that there are for AMD's, whose units are not told apart here."""
    if device.known is not None:
        return device.known.capability
    import torch

    return (99, 0) if torch.version.hip is not None else torch.cuda.get_device_capability(device.name)


def _cuda_name(device: Device) -> str:
    if device.known is not None:
        return device.known.label
    import torch

    return torch.cuda.get_device_name(device.name)


def cuda_devices() -> int:
    if sys.platform == "linux" and not any(map(os.path.exists, DRIVERS)):
        return 0  # torch takes seconds to say the same
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
