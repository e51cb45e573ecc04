"""What `--model_args` may say, and what is refused by name."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.errors import UserError
from flows.harness import model_args
from flows.harness.model_args import ModelArgs, in_their_words, read_model_args
from tasks.job.job import EngineLimits

PAGE = Path(__file__).parents[3] / "docs" / "lm-eval.md"


def test_the_harness_names_and_a_jobs() -> None:
    given = {
        "pretrained": "embedded",
        "max_length": 512,
        "dtype": "float32",
        "kv_cache_memory": "64MiB",
        "device": "cpu",
    }
    args = read_model_args({**given, "batch_size": "auto", "max_batch_size": None, "trust_remote_code": False})
    assert args.path == "embedded"
    expected = EngineConfig(
        device="cpu", dtype="float32", kv_cache_memory=2**26, max_model_len=512, max_num_batched_tokens=0
    )
    assert args.engine_config() == expected
    assert (args.max_gen_toks, args.seed) == (256, 1234)


def test_a_dtype_may_be_torchs() -> None:
    assert read_model_args({"pretrained": "embedded", "dtype": torch.bfloat16}).dtype == "bfloat16"


def test_vllms_name_of_the_length() -> None:
    assert read_model_args({"pretrained": "embedded", "max_model_len": 64}).max_model_len == 64


@pytest.mark.parametrize(("gpus", "device"), [(0, "auto"), (1, "cuda:0")])
def test_the_harness_own_device_is_no_wish(monkeypatch: pytest.MonkeyPatch, gpus: int, device: str) -> None:
    """Its command asks for `cuda:0` where its user asks for nothing."""
    monkeypatch.setattr(model_args, "cuda_devices", lambda: gpus)
    assert read_model_args({"pretrained": "embedded", "device": "cuda:0"}).device == device


def test_thinking_is_an_argument_of_the_template() -> None:
    given = {"enable_thinking": False, "chat_template_args": {"tone": "dry"}}
    assert read_model_args({"pretrained": "embedded", **given}).template_args == {
        "enable_thinking": False,
        "tone": "dry",
    }
    assert read_model_args({"pretrained": "embedded"}).template_args == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_lenght": 5}, "max_lenght: unknown argument; did you mean max_length?"),
        pytest.param(
            {"trust_remote_code": True},
            "trust_remote_code: a model's own code is never run; leave it out",
            marks=pytest.mark.fault(24),
        ),
        ({"parallelize": True}, "parallelize: is not taken: the harness has one engine"),
        ({"workers": "2"}, "workers: is not taken: the harness has one engine"),
        (
            {"tensor_parallel_size": 2, "peft": "adapter"},
            "tensor_parallel_size does not go with peft; leave one of them out",
        ),
        ({"gguf_file": "a.gguf"}, "gguf_file: is not taken: give the .gguf file itself as pretrained"),
        ({"max_length": -1}, "max_length: should be greater than or equal to 0 (got -1)"),
        ({"dtype": "float8"}, "dtype: should be 'auto', 'float32', 'bfloat16' or 'float16' (got 'float8')"),
        ({"kv_cache_memory": "much"}, "kv_cache_memory: 'much' is not a size; write it like 2GiB or 512MiB"),
        ({"device": "mps"}, "device: string should match pattern '^(auto|cpu|cuda(:\\d+)?)$' (got 'mps')"),
        ({"enable_thinking": True}, "enable_thinking needs think_end_token, the text or token behind which the answer"),
        ({"pretrained": None}, "pretrained: is required; a folder with safetensors, a .gguf file, or embedded"),
    ],
)
def test_what_is_wrong_is_said_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        read_model_args({"pretrained": "embedded"} | given)
    assert str(refused.value).startswith(f"model_args: {said}")


def test_each_fault_has_a_line() -> None:
    with pytest.raises(UserError) as refused:
        read_model_args({"max_gen_toks": 0, "paralelize": 1})
    assert [line.split(":")[1].strip() for line in str(refused.value).splitlines()] == [
        "pretrained",
        "max_gen_toks",
        "paralelize",
    ]


def test_the_page_has_every_argument() -> None:
    """Those of a job's `engine` group are that page's."""
    own = {
        field.alias or name for name, field in ModelArgs.model_fields.items() if name not in EngineLimits.model_fields
    }
    rows = re.findall(r"^\| (`.*?) \|", PAGE.read_text(), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == own | {"max_length", "device"}


def test_a_jobs_keys_are_said_as_arguments() -> None:
    with pytest.raises(UserError, match=r"^model_args: pretrained: no folder x; dtype: y$"), in_their_words():
        raise UserError("model.path: no folder x; model.dtype: y")
