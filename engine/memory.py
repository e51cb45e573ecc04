"""The memory that an engine will need, worked out before any of it is taken."""

import json
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import psutil

from engine.config import DEFAULT_STEP_TOKENS, EngineConfig
from engine.device import Device
from engine.errors import UserError
from engine.figures import figure
from engine.model import ModelFiles
from engine.model_shape import ModelShape
from kernels.processor import NATIVE_BYTES

# Rows whose logits exist at one time, and how many copies of them: logits, log-probabilities, a draw's scratch.
HEAD_ROWS, LOGITS_COPIES = 256, 3
# A leaf that nothing reads again may overshoot the step's tokens by less than as many.
OVERSHOOT = 2
# Of what quantising adds.
WEIGHT_BITS = {"none": 0, "int8": 8, "int4": 4}
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes. `weights` while they are loaded: quantising holds both precisions for a moment."""

    weights: int
    kv_cache: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.logits

    def __str__(self) -> str:
        parts = f"{_gib(self.weights)} weights, {_gib(self.kv_cache)} KV"
        return f"{_gib(self.total)} ({parts}, {_gib(self.activations + self.logits)} activations and logits)"


def memory_need(files: ModelFiles, shape: ModelShape, config: EngineConfig, device: Device) -> MemoryNeed:
    """For a model on `device`; activations are those of one layer, which the next one's replace."""
    weights = _weights(files, shape, device) + shape.matmul_params * WEIGHT_BITS[config.quantization] // 8
    heads = shape.head_dim * (2 * shape.num_heads + 2 * shape.num_kv_heads)
    row = 4 * shape.hidden_size + heads + 3 * shape.intermediate_size * shape.experts_per_token
    step_tokens = OVERSHOOT * (config.max_num_batched_tokens or DEFAULT_STEP_TOKENS)
    return MemoryNeed(
        weights=weights,
        kv_cache=config.kv_cache_memory,
        activations=step_tokens * row * device.dtype_bytes,
        logits=HEAD_ROWS * LOGITS_COPIES * shape.vocab_size * 4,
    )


def refuse_too_large(need: MemoryNeed, config: EngineConfig, device: Device) -> None:
    """Raises UserError where this machine has less memory than an engine on its processors would take."""
    if device.name != "cpu":
        return  # a GPU's allocator refuses at once, when the cache is made
    held = machine_memory()
    if need.total > held:
        room = held - need.total + config.kv_cache_memory
        cure = f"take at most {room // 2**20}MiB" if room >= 2**20 else "the model itself does not fit"
        raise UserError(f"engine.kv_cache_memory: {need} needed, but this machine has {_gib(held)}; {cure}")


def machine_memory() -> int:
    """Bytes that this process may take: all of the machine's, or what its control group allows."""
    total = int(psutil.virtual_memory().total)
    with suppress(OSError, ValueError):
        return min(total, int(CGROUP_LIMIT.read_text()))
    return total


def _weights(files: ModelFiles, shape: ModelShape, device: Device) -> int:
    """As the headers of the safetensors say; of a GGUF file, which packs them, as the sizes say."""
    if files.gguf_file is not None:
        sizes = [[shape.matmul_params], [shape.vocab_size, shape.hidden_size]]
    else:
        sizes = [size for file in sorted(files.folder.glob("*.safetensors")) for size in _sizes_in(file)]
    total = sum(map(prod, sizes)) * device.dtype_bytes
    if device.packs(shape):
        # A head that is the embedding too is packed beside it, and again in 8 bits where the processor takes them.
        is_tied = sizes.count([shape.vocab_size, shape.hidden_size]) < 2
        total += shape.head_params * (is_tied * device.dtype_bytes + NATIVE_BYTES)
    return total


def _sizes_in(file: Path) -> list[list[int]]:
    """Of a file's tensors; none for a file that is no safetensors: loading says what is wrong with it."""
    with file.open("rb") as source, suppress(ValueError, KeyError, TypeError, AttributeError):
        length = int.from_bytes(source.read(8), "little")
        header = json.loads(source.read(min(length, file.stat().st_size)))
        return [[int(side) for side in tensor["shape"]] for name, tensor in header.items() if name != "__metadata__"]
    return []


def _gib(size: int) -> str:
    return f"{figure(size / 2**30, 2)} GiB"
