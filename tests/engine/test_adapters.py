"""Rows of many adapters in one batch answer as PEFT's models do, each alone."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.config import EngineConfig
from engine.loop.batch import plan_requests, run_plan
from engine.loop.build import build_engine
from engine.loop.engine import Engine
from engine.model.checkpoint import load_shape, resolve_model
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams
from kernels.kv_format import FLOAT32
from tests.engine.families import SERVED, save_tiny
from tests.engine.tiny_adapters import ALL, PeftOracle, save_adapter

FAMILIES = {family.id: family for family in SERVED}
# Fused on a CPU, packed projections, Conv1D, norms over heads, experts beside attention, soft caps and windows.
TARGETS: dict[str, Any] = {
    "Llama": ALL,
    "Qwen2": ALL,
    "Qwen3": ALL,
    "Mistral": r".*\.(q|down)_proj",
    "Phi-3": ["qkv_proj", "gate_up_proj", "o_proj", "down_proj"],
    "GPT-2": ["c_attn", "c_proj", "c_fc"],
    "Gemma-2": "all-linear",
    "Mixtral": ["q_proj", "v_proj"],
    "OPT": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
}
WAYS: tuple[dict[str, Any], ...] = (
    {"r": 8, "lora_alpha": 16},
    {"r": 20, "lora_alpha": 8, "use_rslora": True},
    {"r": 4, "lora_alpha": 4, "rank_pattern": {"0.*": 17}, "alpha_pattern": {".*1.*": 3}},
)


def drawn(adapters: list[str | None], rows: int = 24, seed: int = 0) -> list[Request]:
    """Texts, labels and log-probabilities of prompts, on a trie whose stems are of several adapters at once."""
    draw = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [draw.randrange(3, 512) for _ in range(draw.randint(low, high))]

    stems = [tokens(20, 40) for _ in range(3)] + [[]]
    requests = []
    for row in range(rows):
        prompt = np.array(stems[row % 4] + tokens(1, 20), dtype=np.int32)
        labels = tuple(np.array(tokens(1, 4), dtype=np.int32) for _ in range(3)) if row % 2 else None
        params = SamplingParams(max_tokens=draw.randint(2, 8), ignore_eos=True)
        requests.append(Request(str(row), prompt, params, labels, adapters[row % len(adapters)]))
    return requests


def engine_of(base: Path, kv_tokens: int = 2000, **limits: Any) -> Engine:
    files = resolve_model(str(base))
    memory = kv_tokens * load_shape(files).kv_bytes_per_token(FLOAT32)
    return build_engine(
        files, EngineConfig(device="cpu", dtype="float32", kv_cache_memory=memory, **limits), detokenize=False
    )


def run(engine: Engine, requests: list[Request]) -> dict[str, RequestOutput]:
    outputs = {output.request_id: output for output in run_plan(engine, plan_requests(engine, requests), requests)}
    engine.scheduler.check_integrity()
    return outputs


@pytest.mark.parametrize("name", TARGETS)
def test_answers_as_peft_merged(name: str, tmp_path: Path) -> None:
    """Of several families: three adapters of different ranks and scales, rows without one between them."""
    save_tiny(FAMILIES[name].model_type, FAMILIES[name].config, tmp_path / "base")
    folders = {
        str(tmp_path / str(n)): save_adapter(
            tmp_path / "base", tmp_path / str(n), n, target_modules=TARGETS[name], fan_in_fan_out=name == "GPT-2", **way
        )
        for n, way in enumerate(WAYS)
    }
    requests = drawn([None, *folders])
    engine = engine_of(tmp_path / "base", max_num_batched_tokens=64)
    outputs = run(engine, requests)
    engine.close()
    oracles = PeftOracle(tmp_path / "base", folders).oracles
    for request in requests:
        oracles[request.adapter].assert_same(request, outputs[request.request_id])
