"""The memory that an engine will need, worked out before any of it is taken."""

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import psutil

from engine.config import DEFAULT_KV_MEMORY, EngineConfig
from engine.errors import UserError
from engine.figures import figure
from engine.machine.device import Device
from engine.model.checkpoint import ModelFiles
from engine.model.linear_schemes import linear_scheme
from engine.model.model_shape import ModelShape
from kernels.processor import NATIVE_BYTES

# Rows whose logits exist at one time, and how many copies of them: logits, log-probabilities, a draw's scratch. 256
# rows of a vocabulary of 50,000 tokens are 50 MB in float32.
HEAD_ROWS, LOGITS_COPIES = 256, 3
# A leaf that nothing reads again may overshoot the step's tokens by less than as many.
OVERSHOOT = 2
# A GPU's context, compiled kernels, and what captured graphs keep beside a step's activations.
GPU_RESERVE = 2**30
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
    """For a model on `device`, or for a rank's part of one, whose sizes `shape` then has.

    Activations are those of one layer, which the next one's replace, or what embeddings are made of behind the last.
    """
    quantized = shape.matmul_params * linear_scheme(config.quantization, device.backend).weight_bits // 8
    heads = shape.head_dim * (2 * shape.num_heads + 2 * shape.num_kv_heads)
    row = 4 * shape.hidden_size + heads + 3 * shape.intermediate_size * shape.experts_per_token
    # The hidden state, a copy in float32, and a sum: of each row, where every node has one.
    pooled = shape.hidden_size * (device.dtype_bytes + 4 + 4)
    step_tokens = OVERSHOOT * (config.max_num_batched_tokens or device.step_tokens)
    return MemoryNeed(
        weights=_weights(files, shape, device, config) + quantized,
        kv_cache=config.kv_cache_memory,
        activations=step_tokens * max(row * device.dtype_bytes, pooled),
        logits=HEAD_ROWS * LOGITS_COPIES * shape.vocab_size * 4,
    )


def settled(files: ModelFiles, shape: ModelShape, config: EngineConfig, device: Device) -> EngineConfig:
    """`config` with a number for `kv_cache_memory`.

    0 is on a CPU the default, on a GPU all that `gpu_memory_utilization` of its memory leaves beside the rest. Raises
    UserError where that is nothing.
    """
    if config.kv_cache_memory:
        return config
    if device.name == "cpu":
        return replace(config, kv_cache_memory=DEFAULT_KV_MEMORY)
    need, share = memory_need(files, shape, config, device).total, config.gpu_memory_utilization
    room = int(device_memory(device) * share) - need - GPU_RESERVE
    if room <= 0:
        raise UserError(
            f"engine.gpu_memory_utilization: {_gib(need + GPU_RESERVE)} needed before any KV, but {share:g} of "
            f"{device.label}'s {_gib(device_memory(device))} is less; take a smaller model or quantization"
        )
    return replace(config, kv_cache_memory=room)


def device_memory(device: Device) -> int:
    """Bytes of a GPU's memory, whoever holds them."""
    if device.known is not None:
        return device.known.usable_bytes
    import torch  # takes seconds, which a plan for a CPU need not wait

    return int(torch.cuda.get_device_properties(device.name).total_memory)


def refuse_too_large(need: MemoryNeed, config: EngineConfig, device: Device, workers: int = 1) -> None:
    """Raises UserError where the machine, or the GPU, has less memory than an engine would take.

    So many `workers`, and the ranks of each, have the machine's in equal parts; each has a GPU of its own.
    """
    on_cpu = device.name == "cpu"
    sharing = workers * config.tensor_parallel
    held = machine_memory() // sharing if on_cpu else device_memory(device) - GPU_RESERVE
    if need.total > held:
        room = held - need.total + config.kv_cache_memory
        cure = f"take at most {room // 2**20}MiB" if room >= 2**20 else "the model itself does not fit"
        who = "workers" if config.tensor_parallel == 1 else "ranks"
        where = device.label if not on_cpu else "this machine" if sharing == 1 else f"each of {sharing} {who}"
        raise UserError(f"engine.kv_cache_memory: {need} needed, but {where} has {_gib(held)}; {cure}")


def ran_out(need: MemoryNeed, device: Device) -> UserError:
    """Where a device has less than it said: others hold some of it."""
    where = "this machine" if device.name == "cpu" else device.label
    return UserError(
        f"engine.kv_cache_memory: {where} ran out of memory while the model was loaded: {need} needed, and others hold "
        "some of what there is; end them, or take less"
    )


def machine_memory(limit: Path = CGROUP_LIMIT) -> int:
    """Bytes that this process may take: all of the machine's, or what its control group allows."""
    total = int(psutil.virtual_memory().total)
    with suppress(OSError, ValueError):
        return min(total, int(limit.read_text()))
    return total


def _weights(files: ModelFiles, shape: ModelShape, device: Device, config: EngineConfig) -> int:
    """As the headers of the safetensors say; of a file that packs them, as the sizes say: they may be unpacked.

    A rank has its part of each matrix, and all of embedding and head.
    """
    ranks, table = config.tensor_parallel, [shape.vocab_size, shape.hidden_size]
    if files.gguf_file is not None or _is_packed(files):
        sizes = [[ranks, shape.matmul_params], table]
    else:
        sizes = [size for file in sorted(files.folder.glob("*.safetensors")) for size in _sizes_in(file)]
    dealt = sum(prod(size) for size in sizes if len(size) > 1 and size != table)
    total = (sum(map(prod, sizes)) - dealt + dealt // ranks) * device.dtype_bytes
    if device.packs(shape) or config.determinism == "strict":
        # A head that is the embedding too is packed beside it, with our own layers or for products in order.
        total += shape.head_params * device.dtype_bytes * (sizes.count(table) < 2)
    if device.packs(shape):
        total += shape.head_params * NATIVE_BYTES  # and again in 8 bits where the processor takes them
    return total


def _is_packed(files: ModelFiles) -> bool:
    with suppress(OSError, ValueError):  # loading says what is wrong with it
        return "quantization_config" in json.loads((files.folder / "config.json").read_text())
    return False


def _sizes_in(file: Path) -> list[list[int]]:
    """Of a file's tensors; none for a file that is no safetensors: loading says what is wrong with it."""
    with file.open("rb") as source, suppress(ValueError, KeyError, TypeError, AttributeError):
        length = int.from_bytes(source.read(8), "little")
        header = json.loads(source.read(min(length, file.stat().st_size)))
        return [[int(side) for side in tensor["shape"]] for name, tensor in header.items() if name != "__metadata__"]
    return []


def _gib(size: int) -> str:
    return f"{figure(size / 2**30, 2)} GiB"
