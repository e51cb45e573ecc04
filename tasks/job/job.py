"""What a user asks for: the job file's schema, which is the flow's parameter schema as well."""

import codecs
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
from tasks.job.job_part import FilePath, Name, Part, exactly_one
from tasks.job.prompt import Prompt
from tasks.job.sampling import Sampling
from tasks.job.task import Task
from tasks.job.task_keys import TaskKeys, keys_of

RESULT_COLUMNS = (
    "custom_id",
    "status",
    "task",
    "generated_text",
    "reasoning",
    "parsed",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cumulative_logprob",
    "logprobs",
    "outputs",
    "prompt_logprobs",
    "label",
    "label_norm",
    "label_probs",
    "label_logprobs",
    "missing_mass",
    "score",
    "scores",
    "logprob",
    "is_greedy",
    "perplexity",
    "min_margin",
    "embedding",
    "error_type",
    "error_message",
    "attempts",
    "run_id",
    "request_hash",
)
ROW_COLUMN = "row_index"
# Of a run: each has threads of the run's process, and a model of its own in a device's memory.
MAX_WORKERS = 256

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


def _as_mapping(value: object) -> object:
    """`keep` may be a list of columns, or a mapping from a column to its name in the results."""
    if isinstance(value, list | tuple):
        if any(not isinstance(column, str) for column in value):
            raise ValueError("is a list of column names, or a mapping of column to result column")
        if len(set(value)) != len(value):
            raise ValueError("names a column twice")
        return {column: column for column in value}
    return value


def _no_clash(keep: dict[str, str]) -> dict[str, str]:
    taken = {*RESULT_COLUMNS, ROW_COLUMN}
    for column, name in keep.items():
        if name.lower() in taken:
            raise ValueError(
                f"{name!r} is a column that the results have already; give it another name: {{{column}: my_{name}}}"
            )
        taken.add(name.lower())
    return keep


def _at_least_a_mebibyte(size: int) -> int:
    if 0 < size < 2**20:
        raise ValueError(f"{size} bytes hold nothing; take auto, or 1MiB at least")
    return size


def _auto_is_zero(value: object) -> object:
    return 0 if value == "auto" else value


def _delimiter(text: str) -> str:
    """YAML takes `'\\t'` in single quotes for two characters."""
    text = "\t" if text == r"\t" else text
    if len(text) != 1 or text in '"\r\n':
        raise ValueError("is one character, such as ; or \\t, and neither a quote nor a line's end")
    return text


def _encoding(name: str) -> str:
    try:
        if "a".encode(name).decode(name) == "a":
            return codecs.lookup(name).name
    except (LookupError, UnicodeError, ValueError):
        pass
    raise ValueError(f"{name!r:.60} is no text encoding that Python knows; cp1252 and utf-16 are two")


Delimiter = Annotated[str, AfterValidator(_delimiter)]
Encoding = Annotated[str, AfterValidator(_encoding)]
StepTokens = Annotated[int, BeforeValidator(_auto_is_zero, json_schema_input_type=int | Literal["auto"])]
KVMemory = Annotated[
    int,
    AfterValidator(_at_least_a_mebibyte),
    BeforeValidator(parse_size),
    BeforeValidator(_auto_is_zero, json_schema_input_type=int | str),
]
Kept = Annotated[
    dict[Name, Name],
    BeforeValidator(_as_mapping, json_schema_input_type=list[Name] | dict[Name, Name]),
    AfterValidator(_no_clash),
]


class DuckDBSource(Part):
    """A DuckDB database, opened read-only, and one SELECT on it."""

    database: FilePath = Field(description="The database's file. Views in it may read files that lie beside it.")
    query: Name = Field(description="One SELECT; its rows are the source's.")


class Source(Part):
    """Where the rows come from. Exactly one of `parquet`, `csv`, `jsonl` (globs) and `duckdb`."""

    parquet: FilePath | None = Field(
        default=None, description="Parquet files: a path, or a glob such as `data/*.parquet`."
    )
    csv: FilePath | None = Field(default=None, description="CSV files with a header, `.gz` too: a path or a glob.")
    jsonl: FilePath | None = Field(
        default=None, description="Files of a JSON object a line, `.gz` too: a path or a glob."
    )
    duckdb: DuckDBSource | None = None
    folder: FilePath | None = Field(
        default=None,
        description="Where relative paths start that lead nowhere from the working directory: the job file's folder.",
    )
    delimiter: Delimiter | None = Field(default=None, description="Of CSV; found in the file where it is not said.")
    encoding: Encoding | None = Field(default=None, description="Of CSV and JSONL; UTF-8 or a byte order mark's.")
    id: Name | None = Field(default=None, description="A unique column; the row's position where there is none.")
    keep: Kept = Field(
        default={}, description="Columns that the results carry: a list, or a mapping to the name they get."
    )

    @classmethod
    def faults(cls, given: Mapping[str, Any]) -> Iterator[str]:
        yield from exactly_one(given, ("parquet", "csv", "jsonl", "duckdb"))
        if given.get("delimiter") is not None and given.get("csv") is None:
            yield "delimiter belongs to csv"
        if given.get("encoding") is not None and given.get("csv") is None and given.get("jsonl") is None:
            yield "encoding belongs to csv and jsonl"

    @property
    def kind(self) -> str:
        return next(kind for kind in ("parquet", "csv", "jsonl", "duckdb") if getattr(self, kind) is not None)


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
    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field(
        default="auto", description="auto (a GPU if there is one), cpu, cuda or cuda:N."
    )
    workers: int = Field(
        default=0,
        ge=0,
        le=MAX_WORKERS,
        description="Engines, each with a GPU or an equal part of the cores, and a KV cache, of its own; 0: one a GPU, "
        "or one on all cores. [clusters.md](clusters.md) is about it.",
    )


class ScoringJob(Part):
    """A table of prompts, what is asked of each, the model, and where the results go."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = Field(
        description="Names the run: letters, digits, dots, dashes and underscores."
    )
    source: Source
    prompt: Prompt
    task: Task
    model: Model = Model()
    sampling: Sampling = Sampling()
    engine: EngineLimits = EngineLimits()
    runner: Literal["local", "dask"] = Field(
        default="local",
        description="local: engines on this machine; dask: one on each worker of a Dask cluster "
        "([clusters.md](clusters.md)).",
    )
    dask_scheduler: str | None = Field(
        default=None,
        description="The scheduler's address, such as `tcp://host:8786`, where `runner` is dask; a cluster of this "
        "machine's own, which ends with the run, where it is not said.",
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
    output: FilePath | None = Field(default=None, description="The output folder; runs/<name> where it is not said.")
    store: FilePath | None = Field(
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
        if given.get("dask_scheduler") is not None and given.get("runner") != "dask":
            yield "dask_scheduler belongs to runner: dask"
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
    def output_folder(self) -> Path:
        return Path(self.output or f"runs/{self.name}").expanduser().absolute()

    @property
    def store_folder(self) -> Path | None:
        return None if self.store is None else Path(self.store).expanduser().absolute()

    @property
    def workers_here(self) -> int:
        """How many engines share this machine's cores; those of a cluster elsewhere have their own."""
        return max(1, self.engine.workers) if self.dask_scheduler is None else 1

    def engine_config(self) -> EngineConfig:
        precision = self.model.model_dump(include={"dtype", "quantization", "kv_cache_dtype"})
        return EngineConfig(**precision, **self.engine.model_dump(exclude={"workers"}))


def _is_idle(sampling: object, keys: TaskKeys) -> bool:
    """Whether a part of it has no effect on a type with these keys; one that is not valid is said elsewhere."""
    try:
        given = Sampling.model_validate(sampling)
    except ValidationError:
        return not keys.samples
    return keys.heeded(given) != given
