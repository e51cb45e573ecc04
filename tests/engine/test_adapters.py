"""Rows of many adapters in one batch answer as PEFT's models do, each alone."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.config import EngineConfig
from engine.loop.batch import plan_requests, run_plan
from engine.loop.build import build_engine
from engine.loop.engine import Engine
from engine.model.adapter_files import WEIGHTS, read_adapter
from engine.model.checkpoint import load_shape, resolve_model
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams
from examples.adapters import write_adapter
from kernels.kv_format import FLOAT32
from tests.engine.families import SERVED, save_tiny
from tests.engine.tiny_adapters import ALL, PeftOracle, llama_linears, save_adapter

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


@pytest.mark.parametrize(("name", "merged"), [*((name, True) for name in TARGETS), ("Llama", False)])
def test_answers_as_pefts_model(name: str, merged: bool, tmp_path: Path) -> None:
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
    oracles = PeftOracle(tmp_path / "base", folders, merged=merged).oracles
    for request in requests:
        oracles[request.adapter].assert_same(request, outputs[request.request_id])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_tiny("llama", FAMILIES["Llama"].config, folder)
    return folder


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Six adapters of the base's layers."""
    linears = llama_linears(64, 64, 32, 96, 2)
    place = tmp_path_factory.mktemp("adapters")
    return [str(write_adapter(place / str(n), linears, n, rank=4 + 5 * n)) for n in range(6)]


def assert_nearly_equal(a: dict[str, RequestOutput], b: dict[str, RequestOutput], tolerance: float = 1e-4) -> None:
    assert a.keys() == b.keys()
    for name, one in a.items():
        assert (one.error_type, one.token_ids) == (None, b[name].token_ids)
        for x, y in zip(one.label_scores or (), b[name].label_scores or (), strict=True):
            assert abs(x.logprob - y.logprob) < tolerance


def test_answers_do_not_depend_on_order_or_on_who_is_beside(base: Path, folders: list[str]) -> None:
    """And a row without an adapter answers as where there is none."""
    requests = drawn([None, *folders], rows=28)
    engine = engine_of(base, max_num_batched_tokens=64)
    together = run(engine, requests)
    shuffled = random.Random(1).sample(requests, len(requests))
    assert_nearly_equal(together, run(engine, shuffled))
    for adapter in (None, folders[3]):
        alone = [request for request in requests if request.adapter == adapter]
        assert_nearly_equal({r.request_id: together[r.request_id] for r in alone}, run(engine, alone))
    engine.close()


def test_a_tiny_pool_evicts_and_answers_the_same(base: Path, folders: list[str]) -> None:
    """Room for two adapters of six; the peak is the plan's."""
    requests = drawn([None, *folders], rows=28)
    roomy = engine_of(base, kv_tokens=8000, max_num_batched_tokens=64)
    wanted = run(roomy, requests)
    most = max(size.blocks for size in roomy.runner.adapters.sizes(folders).values())
    roomy.close()
    engine = engine_of(base, kv_tokens=16 * (2 * most + 12), max_num_batched_tokens=64)
    plan = plan_requests(engine, requests)
    outputs = {output.request_id: output for output in run_plan(engine, plan, requests)}
    engine.scheduler.check_integrity()
    assert_nearly_equal(wanted, outputs)
    assert plan.summary.adapters == 6
    assert engine.counters().peak_kv_bytes == plan.summary.peak_kv_bytes <= plan.summary.kv_cache_memory
    assert plan.summary.adapter_bytes > plan.summary.kv_cache_memory
    engine.close()


def test_an_adapter_that_changes_behind_the_plan_is_its_rows_error(
    base: Path, folders: list[str], tmp_path: Path
) -> None:
    """Rows beside them answer as ever, and so does the engine afterwards."""
    linears = llama_linears(64, 64, 32, 96, 2)
    changed = read_adapter(write_adapter(tmp_path / "changed", linears, 7)).name
    gone = read_adapter(write_adapter(tmp_path / "gone", linears, 8)).name
    requests = drawn([None, changed, gone, folders[0]], rows=16)
    others = [request for request in requests if request.adapter in (None, folders[0])]
    engine = engine_of(base)
    wanted = run(engine, others)
    plan = plan_requests(engine, requests)
    write_adapter(tmp_path / "changed", linears, 9)
    (tmp_path / "gone" / WEIGHTS).unlink()
    outputs = {output.request_id: output for output in run_plan(engine, plan, requests)}
    engine.scheduler.check_integrity()
    assert_nearly_equal(wanted, {request.request_id: outputs[request.request_id] for request in others})
    said = {
        changed: "its adapter is not what it was when the rows were read",
        gone: "its adapter holds no adapter_model.safetensors; save it as safetensors",
    }
    for request in requests:
        if request.adapter in said:
            output = outputs[request.request_id]
            assert (output.error_type, output.error_message) == ("BAD_ADAPTER", said[request.adapter])
    assert_nearly_equal(wanted, run(engine, others))
    engine.close()


@pytest.mark.parametrize(("dtype", "quantization"), [("float32", "int8"), ("bfloat16", "none"), ("bfloat16", "int8")])
def test_adapters_over_fewer_bits(dtype: Any, quantization: Any, base: Path, folders: list[str]) -> None:
    """What an adapter adds is made of rows with all their bits: it moves answers as far as in float32."""
    asked = [replace(request, labels=request.labels or (request.prompt_token_ids[:2],)) for request in drawn(
        [None, *folders[:2]], rows=12)]  # fmt: skip
    whole = engine_of(base)
    wanted = run(whole, asked)
    whole.close()
    files = resolve_model(str(base))
    config = EngineConfig(device="cpu", dtype=dtype, quantization=quantization, kv_cache_memory=2**23)
    engine = build_engine(files, config, detokenize=False)
    assert_nearly_equal(wanted, run(engine, asked), tolerance=0.4)
    plain = run(engine, [replace(request, adapter=None) for request in asked])
    engine.close()
    moved = [r.request_id for r in asked if r.adapter is not None]
    differences = [abs(plain[name].label_scores[0].logprob - wanted[name].label_scores[0].logprob) for name in moved]  # type: ignore[index]
    assert max(differences) > 1.5
