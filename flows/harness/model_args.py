"""What `--model_args` says: the harness's names where it has one, a job's names for the rest."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from engine.config import Dtype, EngineConfig, KVCacheDtype, Quantization
from engine.errors import UserError
from engine.machine.device import cuda_devices
from engine.model.adapter_config import AdapterError
from engine.model.adapter_files import AdapterFiles, read_adapter
from tasks.job.job import EngineLimits
from tasks.job.job_part import FilePath

# What other models of the harness take, and why this one does not.
_REFUSED = {
    "parallelize": "the harness has one engine",
    "data_parallel_size": "the harness has one engine",
    "revision": "models are local; give the folder of that revision as pretrained",
    "gguf_file": "give the .gguf file itself as pretrained",
    "tokenizer": "the tokenizer is the one that lies beside the weights",
}


def _dtype(value: object) -> object:
    """`torch.float32` from Python is `float32` from the command line."""
    return str(value).removeprefix("torch.")


def _device(value: object) -> object:
    """A GPU that is not there is no fault: the harness's command asks for `cuda:0` where its user asks for nothing."""
    return "auto" if value == "cuda:0" and not cuda_devices() else value


class ModelArgs(EngineLimits):
    """The arguments of the model, checked."""

    path: FilePath = Field(
        alias="pretrained", description="A folder with safetensors, a .gguf file, or `embedded`. Nothing is downloaded."
    )
    dtype: Annotated[Dtype, BeforeValidator(_dtype)] = Field(
        default="auto", description="auto: float32 on the CPU, bfloat16 on a GPU."
    )
    quantization: Quantization = Field(default="none", description="As a job's `model.quantization`.")
    kv_cache_dtype: KVCacheDtype = Field(default="auto", description="As a job's `model.kv_cache_dtype`.")
    max_model_len: int = Field(
        default=0,
        ge=0,
        alias="max_length",
        description="Tokens of a context with its continuation, at most; 0: what the model was made for.",
    )
    device: Annotated[str, BeforeValidator(_device), Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field(
        default="auto", description="auto (a GPU if there is one), cpu, cuda or cuda:N."
    )
    tensor_parallel: int = Field(
        default=1, ge=1, alias="tensor_parallel_size", description="As a job's `engine.tensor_parallel`."
    )
    peft: FilePath | None = Field(default=None, description="The folder of a LoRA adapter, as PEFT saves it.")
    max_gen_toks: int = Field(default=256, ge=1, description="Tokens of a text, at most, where a task does not say.")
    add_bos_token: bool | None = Field(
        default=None, description="Whether a text begins with the tokenizer's BOS; as the tokenizer has it if not said."
    )
    prefix_token_id: int | None = Field(
        default=None, ge=0, description="The token before an empty context; BOS, else EOS, if not said."
    )
    seed: int = Field(default=1234, ge=0, lt=2**62, description="Of sampled texts; the same request draws the same.")
    chat_template_args: dict[str, Any] = Field(default={}, description="Further arguments of the chat template.")
    enable_thinking: bool | None = Field(default=None, description="An argument of the chat template.")
    think_end_token: str | int | None = Field(
        default=None, description="What ends a model's reasoning, as text or token; the answer is what follows."
    )
    batch_size: int | str | None = Field(default=None, description="Ignored: steps are packed by tokens and memory.")
    max_batch_size: int | None = Field(default=None, description="Ignored, as `batch_size` is.")

    @classmethod
    def faults(cls, given: Mapping[str, Any]) -> Iterator[str]:
        if given.get("enable_thinking") and given.get("think_end_token") is None:
            yield "enable_thinking needs think_end_token, the text or token behind which the answer begins"
        if str(given.get("workers") or 0) not in ("0", "1"):
            yield "workers: is not taken: the harness has one engine"
        if str(given.get("tensor_parallel_size") or 1) != "1" and given.get("peft") is not None:
            yield "tensor_parallel_size does not go with peft; leave one of them out"

    def engine_config(self) -> EngineConfig:
        return EngineConfig(**self.model_dump(include={field.name for field in fields(EngineConfig)}))

    def adapter(self) -> AdapterFiles | None:
        """Raises UserError where the folder holds none that is served."""
        try:
            return None if self.peft is None else read_adapter(self.peft)
        except AdapterError as problem:
            raise UserError(f"peft: {self.peft} {problem}") from None

    @property
    def template_args(self) -> dict[str, Any]:
        thinking = {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}
        return self.chat_template_args | thinking


def read_model_args(given: Mapping[str, Any]) -> ModelArgs:
    """None stands for what was not said. Raises UserError with a line for each argument that is wrong."""
    said = {name: value for name, value in given.items() if value is not None}
    if "max_model_len" in said:
        said.setdefault("max_length", said.pop("max_model_len"))
    if said.get("trust_remote_code") is False:
        del said["trust_remote_code"]
    try:
        return ModelArgs.model_validate(said)
    except ValidationError as invalid:
        lines = [_one_line(error) for error in invalid.errors(include_url=False)]
        raise UserError("\n".join(f"model_args: {line}" for line in lines)) from None


@contextmanager
def in_their_words() -> Iterator[None]:
    """A UserError within the context names arguments, where it would name a job's keys."""
    try:
        yield
    except UserError as problem:
        said = str(problem).replace("model.path", "pretrained").replace("max_model_len", "max_length")
        said = said.replace("tensor_parallel", "tensor_parallel_size")
        raise UserError(f"model_args: {re.sub(r'(model|engine)[.](?=[a-z_]+)', '', said)}") from problem


def argument_names() -> list[str]:
    """As they are given."""
    return sorted(field.alias or name for name, field in ModelArgs.model_fields.items())


def _one_line(error: Any) -> str:
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{name}: {_why_not(name)}"
    if error["type"] == "missing":
        return f"{name}: is required; a folder with safetensors, a .gguf file, or embedded"
    said = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if not name:
        return said
    return f"{name}: {said[:1].lower()}{said[1:]} (got {error['input']!r:.60})"


def _why_not(name: str) -> str:
    if name == "trust_remote_code":
        return "a model's own code is never run; leave it out"
    if name in _REFUSED:
        return f"is not taken: {_REFUSED[name]}"
    close = get_close_matches(name, argument_names(), n=1)
    return f"unknown argument; {f'did you mean {close[0]}?' if close else 'known: ' + ', '.join(argument_names())}"
