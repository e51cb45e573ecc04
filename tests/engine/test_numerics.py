"""The engine answers as it did in the version that `engine/numerics.py` names."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from engine.config import EngineConfig
from engine.loop.batch import plan_requests, run_plan
from engine.loop.build import build_engine
from engine.model.checkpoint import resolve_model
from engine.numerics import NUMERICS
from engine.request import Request
from engine.sampling_params import SamplingParams

# By version: a greedy text, one that is drawn, and the log-likelihoods of two labels. Where they have to change, count
# NUMERICS up and enter what comes out then: answers of the version before are no longer this engine's.
ANSWERS = {
    1: (
        ((6082, 12557, 7983, 21348, 33601, 33399), (44943, 5512, 10589, 43875, 11431, 21482)),
        (-12.654922, -26.339808),
    ),
}
ANSWERS[2] = ANSWERS[1]  # greedy texts of one prompt had another row's token where as many other rows were read


@pytest.fixture
def drawn_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with weights that no version of torch changes."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    draw = np.random.RandomState(0)
    weights = load_file(folder / "model.safetensors")
    drawn = {
        name: np.ones(weight.shape, np.float32) if weight.ndim == 1 else 0.2 * draw.standard_normal(weight.shape)
        for name, weight in sorted(weights.items())
    }
    save_file({name: weight.astype(np.float32) for name, weight in drawn.items()}, folder / "model.safetensors")
    return folder


def test_answers_are_those_of_this_version(drawn_model: Path) -> None:
    prompt = np.arange(20, 60, dtype=np.int32)
    labels = tuple(np.array(ids, np.int32) for ids in ([7], [8, 9]))
    config = EngineConfig(device="cpu", dtype="float32", kv_cache_memory=2**26)
    requests = [
        Request("greedy", prompt, SamplingParams(max_tokens=6, ignore_eos=True)),
        Request("drawn", prompt, SamplingParams(temperature=1.0, seed=3, max_tokens=6, ignore_eos=True)),
        Request("labels", prompt, labels=labels),
    ]
    engine = build_engine(resolve_model(str(drawn_model)), config)
    try:
        found = {output.request_id: output for output in run_plan(engine, plan_requests(engine, requests), requests)}
    finally:
        engine.close()
    texts = found["greedy"].token_ids, found["drawn"].token_ids
    logprobs = [score.logprob for score in found["labels"].label_scores or ()]
    assert texts == ANSWERS[NUMERICS][0]
    assert logprobs == pytest.approx(ANSWERS[NUMERICS][1], abs=1e-4)
