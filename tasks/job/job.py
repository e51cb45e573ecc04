"""What a user asks for: the job file's schema, which is the flow's parameter schema as well."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationError

from engine.config import (
    Admission,
    Determinism,
    Dtype,
    EngineConfig,
    KVCacheDtype,
    Order,
    Quantization,
    Sharing,
    Speculation,
)
from tasks.job.job_part import FilePath, Name, Part
from tasks.job.job_source import Source
from tasks.job.output_place import FolderPath, OutputPlace, local_folder
from tasks.job.prompt import Prompt
from tasks.job.sampling import Sampling
from tasks.job.task import Task
from tasks.job.task_keys import TaskKeys, keys_of

MAX_WORKERS = 256
MAX_RANKS = 64

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]i?)?B?", re.ASCII)
_SCALE = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def parse_size(value: object) -> object:
    """`2GiB`, `512 MiB` or a number of bytes; anything else is left for pydantic to refuse."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"{value!r} is not a size; write it like 2GiB or 512MiB")
    number, unit = match.groups()
    return int(float(number) * _SCALE[unit]) if unit else int(float(number))


def _at_least_a_mebibyte(size: int) -> int:
    if 0 < size < 2**20:
        raise ValueError(f"{size} bytes hold nothing; take auto, or 1MiB at least")
    return size


def _auto_is_zero(value: object) -> object:
    return 0 if value == "auto" else value


StepTokens = Annotated[int, BeforeValidator(_auto_is_zero, json_schema_input_type=int | Literal["auto"])]
KVMemory = Annotated[
    int,
    AfterValidator(_at_least_a_mebibyte),
    BeforeValidator(parse_size),
    BeforeValidator(_auto_is_zero, json_schema_input_type=int | str),
]


class Model(Part):
    """Which model, and how many bits of it."""

    path: FilePath = Field(default="embedded", description="`embedded`, a folder with safetensors, or a .gguf file.")
    dtype: Dtype = Field(default="auto", description="auto: float32 on the CPU, bfloat16 on a GPU.")
    quantization: Quantization = Field(
        default="none",
        description="int8: 8-bit weights and activations; on a GPU also int4 (4-bit weights), fp8 (8-bit floats).",
    )
    kv_cache_dtype: KVCacheDtype = Field(
        default="auto",
        description="auto: as the model computes; fp8: keys and values in 8-bit floats, on a GPU with FP8 units.",
    )
    adapters: dict[Name, FilePath] = Field(
        default={}, description="LoRA adapters that rows may name: a mapping from a name to a folder that PEFT saved."
    )
    adapter: FilePath | None = Field(
        default=None, description="The adapter of all rows: a name of `adapters`, or a folder."
    )
    adapter_column: Name | None = Field(
        default=None,
        description="A column with each row's adapter, a name or a folder; NULL or empty: `adapter`, or none.",
    )


class EngineLimits(Part):
    """How the engine computes: never what, but for `max_model_len`, and the last bits for `determinism`."""

    kv_cache_memory: KVMemory = Field(
        default=0,
        ge=0,
        description="Memory for keys and values, such as `2GiB`; auto (or 0): what a GPU has left, 2 GiB on a CPU.",
    )
    gpu_memory_utilization: float = Field(
        default=EngineConfig().gpu_memory_utilization,
        gt=0,
        le=1,
        description="What an engine takes of a GPU's memory where `kv_cache_memory` is auto.",
    )
    max_num_batched_tokens: StepTokens = Field(
        default=0,
        ge=0,
        description="Tokens of a step; auto (or 0): where this machine's matmuls saturate, measured once.",
    )
    max_model_len: int = Field(
        default=0, ge=0, description="Tokens of a prompt with its answer, at most; 0: what the model was made for."
    )
    block_size: int = Field(default=EngineConfig().block_size, ge=1, description="Tokens of a block of the KV cache.")
    max_num_seqs: int = Field(
        default=EngineConfig().max_num_seqs, ge=1, description="Rows that run at once, where `admission` is count."
    )
    sharing: Sharing = Field(
        default=EngineConfig().sharing, description="Which shared prefixes are computed once; multi_level: all."
    )
    order: Order = Field(
        default=EngineConfig().order, description="Which group runs first; fcfs: as the table has them."
    )
    admission: Admission = Field(
        default=EngineConfig().admission,
        description="Rows begin while their KV fits (memory), or up to a number (count).",
    )
    speculation: Speculation = Field(
        default=EngineConfig().speculation,
        description="ngram: steps that wait for memory verify tokens that the prompt foretells; none: they do not.",
    )
    determinism: Determinism = Field(
        default=EngineConfig().determinism,
        description="strict: a row's answer is the same to its last bit whatever runs beside it; on a CPU.",
    )
    step_timeout: float = Field(
        default=EngineConfig().step_timeout,
        gt=0,
        description="Seconds in which a step has to end; an engine that hangs is replaced, and its rows run again.",
    )
    device: Annotated[str, StringConstraints(pattern=DEVICE)] = Field(
        default="auto", description="auto (a GPU if there is one), cpu, cuda or cuda:N."
    )
    workers: int = Field(
        default=0,
        ge=0,
        le=MAX_WORKERS,
        description="Engines, each with a GPU or an equal part of the cores, and a KV cache, of its own; 0: one a GPU, "
        "or one on all cores. [clusters.md](clusters.md) is about it.",
    )
    tensor_parallel: int = Field(
        default=EngineConfig().tensor_parallel,
        ge=1,
        le=MAX_RANKS,
        description="Devices of one machine that each engine has, on each a part of every layer and of the KV: for "
        "a model that is larger than a device ([clusters.md](clusters.md#a-model-larger-than-a-device)).",
    )


class ScoringJob(Part):
    """A table of prompts, what is asked of each, the model, and where the results go."""

    name: Annotated[str, StringConstraints(pattern=NAME, max_length=100)] = Field(
        description="Names the run: letters, digits, dots, dashes and underscores."
    )
    source: Source
    prompt: Prompt
    task: Task
    model: Model = Model()
    sampling: Sampling = Sampling()
    engine: EngineLimits = EngineLimits()
    runner: Literal["local", "dask", "ray"] = Field(
        default="local",
        description="local: engines on this machine; dask: one on each worker of a Dask cluster; ray: one on each "
        "device of a Ray cluster ([clusters.md](clusters.md)).",
    )
    dask_scheduler: str | None = Field(
        default=None,
        description="The scheduler's address, such as `tcp://host:8786`, where `runner` is dask; a cluster of this "
        "machine's own, which ends with the run, where it is not said.",
    )
    ray_address: Annotated[str, StringConstraints(pattern=r"^(auto|(ray://)?[^\s/]+:\d{1,5})$")] | None = Field(
        default=None,
        description="`auto`, `host:port` of the head, or `ray://host:port` of Ray's client server, where `runner` is "
        "ray; a cluster of this machine's own, which ends with the run, where it is not said.",
    )
    shard_seconds: float = Field(
        default=45.0, gt=0, le=86_400, description="About how long a shard takes, which is what is committed at once."
    )
    checkpoint_seconds: float = Field(
        default=5.0,
        gt=0,
        le=86_400,
        description="How often rows of a shard that have ended are committed before it is done: what a kill can lose.",
    )
    on_error: Literal["row", "fail"] = Field(
        default="row", description="row: a row without an answer is an error row; fail: the first one ends the run."
    )
    max_error_rate: float = Field(
        default=1.0, ge=0, le=1, description="The part of the rows that may be errors; a run with more ends."
    )
    max_engine_deaths: int = Field(
        default=10,
        ge=1,
        description="A run ends where the engine died so often in a row over rows asked alone, and none ended between.",
    )
    price_per_hour: float | None = Field(
        default=None, ge=0, description="What an hour of the machine costs; the run's report says what it cost."
    )
    output: OutputPlace | None = Field(
        default=None,
        description="The output folder, or `s3://BUCKET/FOLDER` ([buckets.md](buckets.md)); runs/<name> where it is "
        "not said.",
    )
    store: FolderPath | None = Field(
        default=None,
        description="A folder that keeps results for other jobs and output folders, and is asked before a row is "
        "scored; none where it is not said. [store.md](store.md) is about it.",
    )

    @classmethod
    def faults(cls, given: Mapping[str, Any]) -> Iterator[str]:
        task, sampling = given.get("task"), given.get("sampling")
        kind = task.get("type") if isinstance(task, Mapping) else getattr(task, "type", None)
        keys = keys_of(kind)
        is_mixed = isinstance(task, Mapping) and task.get("column") is not None
        if keys is not None and not is_mixed and sampling is not None and _is_idle(sampling, keys):
            yield f"sampling has no effect on type: {kind}; remove it"
        yield from _not_in_parts(given.get("model"), given.get("engine"))
        yield from _not_on_a_cluster(given.get("engine"), given.get("runner", "local"))
        if given.get("dask_scheduler") is not None and given.get("runner") != "dask":
            yield "dask_scheduler belongs to runner: dask"
        if given.get("ray_address") is not None and given.get("runner") != "ray":
            yield "ray_address belongs to runner: ray"
        prompt = given.get("prompt")
        has_items = isinstance(task, Mapping) and any(task.get(key) is not None for key in ("items", "items_column"))
        if has_items and isinstance(prompt, Mapping) and prompt.get("messages") is not None:
            yield "task.items stand beside the text of prompt.column or prompt.template; give one of them"

    @property
    def columns(self) -> dict[str, str]:
        """The source's columns that are read beside the prompt's own, the id and what is kept, by the job's key."""
        named = {"sampling.column": self.sampling.column, "model.adapter_column": self.model.adapter_column}
        return (
            self.prompt.columns
            | self.task.columns
            | {key: column for key, column in named.items() if column is not None}
        )

    @property
    def output_place(self) -> str:
        """The output folder as a person says it: a path, or a URL."""
        return self.output or f"runs/{self.name}"

    @property
    def output_folder(self) -> Path:
        """Where its files lie on this machine."""
        return local_folder(self.output_place)

    @property
    def store_folder(self) -> Path | None:
        return None if self.store is None else Path(self.store).expanduser().absolute()

    @property
    def cluster(self) -> str | None:
        """The address of the cluster that computes; None where this machine does."""
        return self.dask_scheduler or self.ray_address

    @property
    def workers_here(self) -> int:
        """How many engines share this machine's cores; those of a cluster elsewhere have their own."""
        return max(1, self.engine.workers) if self.cluster is None else 1

    def engine_config(self) -> EngineConfig:
        precision = self.model.model_dump(include={"dtype", "quantization", "kv_cache_dtype"})
        return EngineConfig(**precision, **self.engine.model_dump(exclude={"workers"}))


def _not_in_parts(model: object, engine: object) -> Iterator[str]:
    """What a model that lies on several devices cannot be given."""
    ranks = engine.get("tensor_parallel") if isinstance(engine, Mapping) else getattr(engine, "tensor_parallel", 1)
    if not isinstance(ranks, int) or ranks < 2:
        return
    for key in ("adapters", "adapter", "adapter_column"):
        if model.get(key) if isinstance(model, Mapping) else getattr(model, key, None):
            yield f"engine.tensor_parallel: {ranks} does not go with model.{key}; take 1, or remove that"


def _not_on_a_cluster(engine: object, runner: object) -> Iterator[str]:
    device = engine.get("device") if isinstance(engine, Mapping) else getattr(engine, "device", None)
    if runner in ("dask", "ray") and isinstance(device, str) and device.startswith("cuda:"):
        cure = f"take cuda, and CUDA_VISIBLE_DEVICES={device.removeprefix('cuda:')} for that GPU alone"
        yield f"engine.device: {device} does not go with runner: {runner}, whose cluster deals the GPUs; {cure}"


def _is_idle(sampling: object, keys: TaskKeys) -> bool:
    """Whether a part of it has no effect on a type with these keys; one that is not valid is said elsewhere."""
    try:
        given = Sampling.model_validate(sampling)
    except ValidationError:
        return not keys.samples
    return keys.heeded(given) != given
