"""What decides an answer is in the name of its request, and nothing else is."""

import json
import os
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from engine.config import EngineConfig
from engine.numerics import NUMERICS
from engine.sampling_params import SamplingParams
from tasks.job.job import EngineLimits, Model, ScoringJob
from tasks.job.job_file import override
from tasks.job.job_source import Source
from tasks.job.prompt import Prompt
from tasks.job.sampling import Sampling
from tasks.job.task import Task
from tasks.request.ask import Ask
from tasks.request.request_hash import RequestHasher
from tasks.request.task_type import RowRequest
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import Run, make_run
from tests.tasks.fakes import job_content, write_model
from tests.tasks.request.fingerprint import BY_CONTENT, BY_TOKENS, DECIDES, KEEPS
from tests.tasks.steps import make_job

PAGE = Path(__file__).parents[3] / "docs" / "store.md"
PROMPT = np.frombuffer(b"a prompt", dtype=np.uint8).astype(np.int32)
LABELS = tuple(np.frombuffer(label, dtype=np.uint8).astype(np.int32) for label in (b" yes", b" no"))
GIVEN = RowRequest(PROMPT, 4, LABELS, (" yes", " no"))
FLOAT32 = "model.dtype", "float32"
PARTS: dict[str, type[BaseModel]] = {
    "prompt": Prompt,
    "task": Task,
    "sampling": Sampling,
    "model": Model,
    "engine": EngineLimits,
    "source": Source,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))
    write_model(tmp_path / "model")
    return tmp_path


def run_of(folder: Path, base: dict[str, Any], key: str | None = None, value: Any = None) -> Run:
    """A run of a job that has `base`, and `value` under the dotted `key`."""
    content = job_content(folder, {"parquet": str(folder / "rows.parquet")})
    content |= deepcopy({name: part for name, part in base.items() if name != "on"})
    if key is not None:
        override(content, key, value)
    elsewhere = base.get("on")
    if elsewhere is not None:
        del content["engine"]["device"]
    return make_run(make_job(content), OutputFolder(folder / "out"), not_here=elsewhere)


def name_of(run: Run, given: RowRequest = GIVEN) -> str:
    return RequestHasher(run)(given, Ask(run.job.task, run.job.sampling), "0")


@pytest.mark.parametrize("key", DECIDES)
def test_what_decides_is_in_the_name(folder: Path, key: str) -> None:
    base, value = DECIDES[key]
    assert name_of(run_of(folder, base, key, value)) != name_of(run_of(folder, base))


@pytest.mark.parametrize("key", [key for key in (*BY_TOKENS, *KEEPS) if key != "engine.device"])
def test_what_does_not_decide_is_not(folder: Path, key: str) -> None:
    base, value = (BY_TOKENS | KEEPS)[key]
    assert name_of(run_of(folder, base, key, value)) == name_of(run_of(folder, base))


def test_a_device_does_not_decide(folder: Path) -> None:
    here, there = run_of(folder, {}, *FLOAT32), run_of(folder, {"on": "h100"}, *FLOAT32)
    assert here.device.name != there.device.name
    assert name_of(here) == name_of(there)


@pytest.mark.parametrize(
    "given",
    [
        RowRequest(PROMPT[:-1], 4, LABELS, (" yes", " no")),
        RowRequest(PROMPT, 5, LABELS, (" yes", " no")),
        RowRequest(PROMPT, 4, LABELS[::-1], (" yes", " no")),
        RowRequest(PROMPT, 4, LABELS, (" no", " yes")),
        RowRequest(PROMPT, 4, LABELS, (" yes", " no"), "folder#content"),
    ],
    ids=["prompt", "room", "labels", "names of labels", "adapter"],
)
def test_tokens_decide(folder: Path, given: RowRequest) -> None:
    run = run_of(folder, {})
    assert name_of(run, given) != name_of(run)


def test_an_adapters_content_decides_and_its_place_does_not(folder: Path) -> None:
    run = run_of(folder, {})
    one, moved, other = (
        name_of(run, RowRequest(PROMPT, 4, LABELS, adapter=name)) for name in ("a#1", "elsewhere/b#1", "a#2")
    )
    assert one == moved != other


@pytest.mark.parametrize(
    "file",
    ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "merges.txt"],
)
def test_a_models_files_decide(folder: Path, file: str) -> None:
    before = name_of(run_of(folder, {}))
    path = folder / "model" / file
    if file == "config.json":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_theta": 7.0}))
    else:
        path.write_text("{}")
    assert name_of(run_of(folder, {})) != before


def test_where_a_model_lies_and_what_is_written_about_it_does_not_decide(folder: Path) -> None:
    before = name_of(run_of(folder, {}))
    (folder / "model" / "README.md").write_text("about it")
    os.utime(folder / "model" / "model.safetensors", (1, 1))
    (folder / "model").rename(folder / "moved")
    content = job_content(folder, {"parquet": "rows.parquet"}, model={"path": str(folder / "moved")})
    assert name_of(make_run(make_job(content), OutputFolder(folder / "out"))) == before


@pytest.mark.parametrize(
    "place", ["chat_template.jinja", "tokenizer_config.json", "additional_chat_templates/tools.jinja"]
)
def test_a_template_decides_tokens_alone(folder: Path, place: str) -> None:
    """A plan whose rows were rendered by another is not taken up, and a request of the same tokens has its name."""

    def write(template: str) -> Run:
        path = folder / "model" / place
        path.parent.mkdir(exist_ok=True)
        config = json.dumps({"eos_token": "x", "chat_template": template})
        path.write_text(config if path.suffix == ".json" else template)
        return run_of(folder, {})

    before, after = write("{{ messages }}"), write("{{ messages }} ")
    assert name_of(before) == name_of(after)
    assert before.fingerprint != after.fingerprint


def test_the_rest_of_a_tokenizers_configuration_decides(folder: Path) -> None:
    names = []
    for end in ("x", "y"):
        config = {"eos_token": end, "chat_template": "{{ messages }}"}
        (folder / "model" / "tokenizer_config.json").write_text(json.dumps(config))
        names.append(name_of(run_of(folder, {})))
    assert names[0] != names[1]


def test_another_version_of_the_arithmetic_decides(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = name_of(run_of(folder, {}))
    monkeypatch.setattr("tasks.storage.run.NUMERICS", NUMERICS + 1)
    assert name_of(run_of(folder, {})) != before


@pytest.mark.parametrize(("asked", "same"), [({"regex": "a"}, False), (None, True)])
def test_a_grammars_version_decides_where_there_is_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, asked: object, same: bool
) -> None:
    base: dict[str, Any] = {"task": {"type": "generate"}, "sampling": {"structured_outputs": asked}}
    before = name_of(run_of(folder, base))
    monkeypatch.setattr("tasks.job.sampling.GRAMMAR_VERSION", "another")
    assert (name_of(run_of(folder, base)) == before) is same


def test_a_default_that_changes_changes_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a request is named by is its value: a default of today is not one of tomorrow."""
    before = Sampling().decisive()
    for name, value in {"min_p": 0.1, "top_p": 0.5, "repetition_penalty": 1.1}.items():
        with monkeypatch.context() as patch:
            patch.setattr(Sampling.model_fields[name], "default", value)
            Sampling.model_rebuild(force=True)
            changed = Sampling()
            assert getattr(changed, name) == value
            assert changed.decisive() != before
    Sampling.model_rebuild(force=True)
    assert Sampling().decisive() == before


def keys() -> Iterator[str]:
    for name in ScoringJob.model_fields:
        if name in PARTS:
            yield from (f"{name}.{key}" for key in PARTS[name].model_fields)
        else:
            yield name


def test_every_key_is_classified() -> None:
    """A key that is new decides an answer or does not: enter it in `tests/tasks/request/fingerprint.py`."""
    classified = [*DECIDES, *BY_TOKENS, *KEEPS, *BY_CONTENT]
    assert sorted(classified) == sorted(keys())


def test_every_field_of_the_engine_is_a_key_of_a_job() -> None:
    """So that those are classified too. How many engines there are is not an engine's to know."""
    sampled = {field.name for field in fields(SamplingParams)}
    assert sampled == set(Sampling.model_fields) - {"n", "best_of", "column"}
    engine = {field.name for field in fields(EngineConfig)}
    assert engine == set(EngineLimits.model_fields) - {"workers"} | {"dtype", "quantization", "kv_cache_dtype"}
    assert {field.name for field in fields(Ask)} == {"task", "sampling"}


@pytest.mark.parametrize(
    ("kind", "keys"),
    [("yes", DECIDES), ("by its tokens", BY_TOKENS), ("by its content", BY_CONTENT), ("no", KEEPS)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_page_says_the_same(kind: str, keys: dict[str, Any]) -> None:
    rows = re.findall(rf"^\| ([^|]+) \| {kind} \|", PAGE.read_text(), re.MULTILINE)
    assert sorted(key for row in rows for key in re.findall(r"`([\w.]+)`", row)) == sorted(keys)
