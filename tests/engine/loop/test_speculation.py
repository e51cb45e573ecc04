"""Texts with drafts against the same engine's texts without: greedy, drawn, stopped, with log-probabilities."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from engine.config import EngineConfig
from engine.loop.batch import plan_requests, run_plan
from engine.loop.build import build_engine
from engine.loop.engine import Engine
from engine.model.checkpoint import resolve_model
from engine.planning.cost import CostModel
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams

PLAIN = EngineConfig(dtype="float32", kv_cache_memory=2**24, speculation="none")
DRAFTING = EngineConfig(dtype="float32", kv_cache_memory=2**24)
ASKED = [
    SamplingParams(max_tokens=60),
    SamplingParams(max_tokens=60, ignore_eos=True, logprobs=2),
    SamplingParams(max_tokens=40, temperature=0.1, top_k=4, seed=7),
    SamplingParams(max_tokens=40, min_tokens=20, logprobs=0),
    SamplingParams(max_tokens=40, repetition_penalty=1.3),
]


@pytest.fixture(scope="module")
def engines(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Engine]]:
    model = resolve_model(str(repetitive(tiny_model, tmp_path_factory.mktemp("repetitive"))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CostModel, "free_rows", lambda _: 24)  # where a step's tokens are given, no rate is measured
        made = tuple(build_engine(model, config) for config in (PLAIN, DRAFTING))
    yield made[0], made[1]
    for engine in made:
        engine.close()


def repetitive(model: Path, folder: Path) -> Path:
    """The model with five tokens to choose from: soon it says what it said."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    (path,) = folder.glob("*.safetensors")
    weights = load_file(path)
    head = weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"].clone())
    head[:100] = head[105:] = 0
    save_file(weights, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return folder


def answers(engine: Engine, requests: list[Request]) -> dict[str, RequestOutput]:
    return {output.request_id: output for output in run_plan(engine, plan_requests(engine, requests), requests)}


def table(engine: Engine) -> list[Request]:
    assert engine.tokenizer is not None
    stem = "The river bends to the north, and the road bends with the river. "
    rows = [engine.tokenizer(stem + tail)["input_ids"] for tail in ("", "The river", "North of it the river bends")]
    return [
        Request(f"{row}-{asked}", np.array(ids, np.int32), params)
        for row, ids in enumerate(rows)
        for asked, params in enumerate(ASKED)
    ]


def test_drafts_change_no_text_and_save_steps(engines: tuple[Engine, Engine]) -> None:
    plain, drafting = engines
    requests = table(plain)
    wanted, found = answers(plain, requests), answers(drafting, requests)
    for name, output in wanted.items():
        assert found[name].token_ids == output.token_ids, name
        assert (found[name].text, found[name].finish_reason) == (output.text, output.finish_reason)
        if output.logprobs is not None:
            assert found[name].logprobs is not None
            assert found[name].cumulative_logprob == pytest.approx(output.cumulative_logprob, abs=1e-3)
            assert [one.token_id for one in found[name].logprobs] == list(output.token_ids)
    before, after = plain.counters(), drafting.counters()
    assert before.draft_tokens == before.accepted_tokens == 0
    assert after.generated_tokens == before.generated_tokens == sum(len(one.token_ids) for one in wanted.values())
    assert 0 < after.accepted_tokens <= after.draft_tokens
    assert after.steps < before.steps


def test_a_stop_string_ends_a_text_amid_its_right_drafts(engines: tuple[Engine, Engine]) -> None:
    plain, _ = engines
    (request, *_) = table(plain)
    text = answers(plain, [request])[request.request_id].text
    assert text is not None
    for stop in (text[20:24], text[-9:-3]):
        stopped = Request("s", request.prompt_token_ids, SamplingParams(max_tokens=60, stop=(stop,)))
        (wanted,), (found,) = (answers(engine, [stopped]).values() for engine in engines)
        assert found.text == wanted.text == text[: text.find(stop)]
        assert (found.token_ids, found.finish_reason) == (wanted.token_ids, "stop")
