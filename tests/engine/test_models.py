"""Every family that is served answers as transformers does; every other one is refused by name."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig

import engine.forward.attention
from engine.config import Dtype, EngineConfig, Sharing
from engine.device_rates import DeviceRates
from engine.errors import UserError
from engine.forward.cpu.attention import CpuStepAttention
from engine.forward.load import load_model
from engine.forward.step_attention import Scoring
from engine.loop.build import build_engine
from engine.machine.device import resolve_device
from engine.model import architecture
from engine.model.architecture import shape_of
from engine.model.checkpoint import load_shape, resolve_model
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan, shard_work
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams
from kernels import kv_format
from tests.engine.families import REFUSED, REFUSED_CONFIG, SERVED, SIZES, Family, save_tiny
from tests.engine.models_table import DOCS, tables, written
from tests.engine.oracle import TOLERANCE, Oracle

# The longest request has 126 tokens: two and a half of them, so that requests wait for each other's KV.
KV_TOKENS = 320
BATCHED_TOKENS = 64
FLOAT32: Dtype = "float32"


def prompts(seed: int = 0, rows: int = 10) -> list[Request]:
    """Text and label requests on a trie of three levels, one row in five without a stem."""
    draw = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [draw.randrange(3, 512) for _ in range(draw.randint(low, high))]

    instructions = [tokens(20, 40) for _ in range(2)]
    stems = [draw.choice(instructions) + tokens(5, 40) for _ in range(4)] + [[]]
    requests = []
    for row in range(rows):
        prompt = np.array(stems[row % 5] + tokens(1, 30), dtype=np.int32)
        labels = tuple(np.array(tokens(1, 4), dtype=np.int32) for _ in range(3)) if row % 2 else None
        requests.append(Request(str(row), prompt, SamplingParams(max_tokens=draw.randint(4, 16)), labels))
    return requests


def answers(folder: Path, requests: list[Request], sharing: Sharing, ranks: int = 1) -> dict[str, RequestOutput]:
    files = resolve_model(str(folder))
    shape = load_shape(files, ranks)
    config = EngineConfig(
        dtype=FLOAT32,
        sharing=sharing,
        max_num_batched_tokens=BATCHED_TOKENS,
        tensor_parallel=ranks,
        kv_cache_memory=KV_TOKENS * shape.kv_bytes_per_token(kv_format.FLOAT32),
    )
    engine = build_engine(files, config, detokenize=False)
    assert engine.runner.model.shape == shape, "plans count on what is loaded"
    plan = make_plan(requests, config, CostModel(shape, kv_format.FLOAT32, DeviceRates(1e9, 1e9)))
    futures = [engine.submit(shard_work(plan, shard, requests)) for shard in plan.shards]
    outputs = {output.request_id: output for future in futures for output in future.result(timeout=60)}
    engine.scheduler.check_integrity()
    assert engine.counters().computed_prompt_tokens == plan.summary.computed_tokens
    engine.close()
    return outputs


def nearly_equal(a: RequestOutput, b: RequestOutput) -> bool:
    """To a hundredth of what the oracle allows."""
    if a.label_scores is None or b.label_scores is None:
        return a.token_ids == b.token_ids
    pairs = zip(a.label_scores, b.label_scores, strict=True)
    return all(abs(x.logprob - y.logprob) < TOLERANCE / 100 for x, y in pairs)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What attention is asked for beside keys and values, in the words of the table."""
    words = {"window": "sliding window", "softcap": "soft-cap", "sinks": "sinks"}
    seen: set[str] = set()
    run = CpuStepAttention.run

    def listening(
        self: CpuStepAttention, layer: int, query: Any, key: Any, value: Any, scoring: Scoring, out: Any = None
    ) -> Any:
        seen.update(word for name, word in words.items() if getattr(scoring, name) is not None)
        return run(self, layer, query, key, value, scoring, out)

    monkeypatch.setattr(CpuStepAttention, "run", listening)
    return seen


@pytest.mark.parametrize("family", SERVED, ids=lambda family: family.id)
def test_same_answers_as_transformers(family: Family, tmp_path: Path, heard: set[str]) -> None:
    model = save_tiny(family.model_type, family.config, tmp_path)
    requests = prompts()
    shared = answers(tmp_path, requests, "multi_level")
    alone = answers(tmp_path, requests, "none")
    oracle = Oracle(tmp_path)
    for request in requests:
        ours, others = shared[request.request_id], alone[request.request_id]
        oracle.assert_same(request, ours)
        if not nearly_equal(ours, others):
            oracle.assert_same(request, others)
    tokens = {token for output in shared.values() for token in output.token_ids or ()}
    assert len(tokens) > 4, "a model that says one thing only shows nothing"
    assert heard == set(family.special) & {"sliding window", "soft-cap", "sinks"}
    experts = any("expert" in name for name, _ in model.named_modules())
    assert experts == ("experts" in family.special)


REFUSALS = [(name, reason) for reason, names in REFUSED.items() for name in names]


@pytest.mark.parametrize(("model_type", "reason"), REFUSALS, ids=[name for name, _ in REFUSALS])
def test_refused_before_any_weight_is_read(model_type: str, reason: str, tmp_path: Path) -> None:
    AutoConfig.for_model(model_type, **REFUSED_CONFIG.get(model_type, {})).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=reason) as refusal:
        load_model(resolve_model(str(tmp_path)), resolve_device(EngineConfig(dtype=FLOAT32)))
    assert f"({model_type})" in str(refusal.value)


def load(folder: Path) -> None:
    load_model(resolve_model(str(folder)), resolve_device(EngineConfig(dtype=FLOAT32)))


SMALL_GEMMA_4 = {
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 2,
    "vocab_size_per_layer_input": 512,
    "hidden_size_per_layer_input": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}


@pytest.mark.parametrize(
    ("model_type", "config", "reason"),
    [
        ("diffllama", {}, "attends more than once"),
        ("doge", {}, "mask or bias of its own"),
        ("gemma4_text", SMALL_GEMMA_4, "has 2 KV heads of 32 in layer 1"),
        ("bert", {"is_decoder": False, "num_key_value_heads": None}, "gives other probabilities"),
        ("roberta", {"is_decoder": True, "num_key_value_heads": None}, "gives other probabilities"),
    ],
)
def test_the_probe_refuses_what_no_name_does(
    model_type: str, config: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architecture, "TYPE_REASONS", {})
    save_tiny(model_type, config, tmp_path)
    with pytest.raises(UserError, match=reason):
        load(tmp_path)


def test_the_probe_sees_a_window_that_attention_does_not_hear_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the window of 2,000 is longer than any probe."""
    save_tiny("phimoe", {"sliding_window": 2000, "num_local_experts": 4}, tmp_path)
    load(tmp_path)
    monkeypatch.setattr(engine.forward.attention, "window_of", lambda _: None)
    with pytest.raises(UserError, match="gives other probabilities"):
        load(tmp_path)


@pytest.mark.parametrize("by_layer", [False, True], ids=["one for all layers", "one a layer type"])
def test_longrope_stays_within_the_context_that_turns_alike(by_layer: bool) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 64, "rope_theta": 1e4, **factors}
    config = SIZES | {"rope_parameters": {"full_attention": rope} if by_layer else rope}
    assert shape_of(config, {}).max_model_len == 64
    assert shape_of(SIZES, {}).max_model_len == 256


@pytest.mark.parametrize(("place", "table"), tables().items(), ids=lambda made: made[1] if type(made) is tuple else "")
def test_the_page_says_what_is_tested(place: tuple[str, str], table: str) -> None:
    page, name = place
    assert written((DOCS / page).read_text(), name) == table, "run python -m tests.engine.models_table"


def test_windows_are_as_they_were_after_loading(tmp_path: Path) -> None:
    save_tiny("mistral", {"sliding_window": 77}, tmp_path)
    model = load_model(resolve_model(str(tmp_path)), resolve_device(EngineConfig(dtype=FLOAT32)))
    assert model.body.config.sliding_window == 77
