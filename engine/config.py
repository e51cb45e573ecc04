"""The engine's limits and policies, each with the reason for its default."""

from dataclasses import dataclass
from typing import Literal, get_args

Sharing = Literal["none", "batchllm", "single_level", "multi_level"]
Order = Literal["fcfs", "ratio"]
Admission = Literal["memory", "count"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "int4", "fp8"]
KVCacheDtype = Literal["auto", "fp8"]
Speculation = Literal["ngram", "none"]
Determinism = Literal["default", "strict"]

SHARING: tuple[Sharing, ...] = get_args(Sharing)
ORDER: tuple[Order, ...] = get_args(Order)
ADMISSION: tuple[Admission, ...] = get_args(Admission)
QUANTIZATION: tuple[str, ...] = get_args(Quantization)
KV_CACHE_DTYPE: tuple[str, ...] = get_args(KVCacheDtype)
DETERMINISM: tuple[str, ...] = get_args(Determinism)

DEFAULT_STEP_TOKENS = 1024
DEFAULT_GPU_STEP_TOKENS = 8192
DEFAULT_KV_MEMORY = 2 * 2**30


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How an engine computes. What it answers depends on `dtype`, `quantization`, `kv_cache_dtype`, `determinism` and,
    where a prompt or an answer is too long for it, on `max_model_len` alone: to its last bit where that is "strict".

    `kv_cache_memory` is in bytes; 0 is resolved by `engine.machine.memory`: on a GPU it is what is left of
    `gpu_memory_utilization` of the device. `max_model_len` 0 takes the model's own; `device` and `dtype` "auto"
    are resolved by `engine.machine.device`. `max_num_batched_tokens` 0 is resolved by `engine.loop.step_budget`, before
    anything is planned or scheduled. `max_num_seqs` bounds `admission="count"` alone. `speculation` lets steps that
    wait for memory verify tokens that prompts foretell (`engine.scheduling.drafts`). An engine in a process of its own
    that ends no step in `step_timeout` seconds is ended (`tasks.engine_process`). So many `tensor_parallel` ranks, each
    with a device of its own, have a part of every layer (`engine.ranks`); `kv_cache_memory` is what each has.
    """

    device: str = "auto"
    dtype: Dtype = "auto"
    quantization: Quantization = "none"
    kv_cache_dtype: KVCacheDtype = "auto"
    kv_cache_memory: int = DEFAULT_KV_MEMORY
    gpu_memory_utilization: float = 0.9
    block_size: int = 16
    max_model_len: int = 0
    max_num_batched_tokens: int = DEFAULT_STEP_TOKENS
    sharing: Sharing = "multi_level"
    order: Order = "ratio"
    admission: Admission = "memory"
    max_num_seqs: int = 256
    speculation: Speculation = "ngram"
    determinism: Determinism = "default"
    step_timeout: float = 600.0
    tensor_parallel: int = 1
