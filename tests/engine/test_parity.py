"""The same answers as transformers, with sharing on and off, in any order, under any budget."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.config import SHARING, EngineConfig
from engine.device_rates import DeviceRates
from engine.loop.build import build_engine
from engine.loop.engine import Engine
from engine.model.checkpoint import load_shape, resolve_model
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan, shard_work
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams
from kernels.kv_format import FLOAT32
from tests.engine.oracle import Oracle

ROWS = 200
# The longest request holds 126 tokens, so 160 let one or two requests run at a time: groups must wait.
KV_TOKENS = {"roomy": 20_000, "tight": 1_000, "one at a time": 160}


def shared_prefix_prompts(seed: int = 0) -> list[Request]:
    """Text and label requests, on a trie of three levels with stems of any length, some rows without a stem, and some
    whose prompt is another's too.
    """
    draw = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(100, 40_000) for _ in range(count)]

    instructions = [tokens(draw.randint(1, 40)) for _ in range(3)]
    stems = [draw.choice(instructions) + tokens(draw.randint(1, 40)) for _ in range(12)] + [[]]
    requests = []
    for row in range(ROWS):
        prompt = np.array(draw.choice(stems) + tokens(draw.randint(1, 30)), dtype=np.int32)
        if requests and row % 5 == 0:
            prompt = draw.choice(requests).prompt_token_ids
        labels = tuple(np.array(tokens(draw.randint(1, 4)), dtype=np.int32) for _ in range(4)) if row % 2 else None
        requests.append(Request(str(row), prompt, SamplingParams(max_tokens=draw.randint(1, 16)), labels))
    return requests


def run(engine: Engine, requests: list[Request], config: EngineConfig) -> tuple[dict[str, RequestOutput], int]:
    """Outputs by id, and the prompt tokens that the plan says must be computed."""
    shape = engine.runner.model.shape
    plan = make_plan(requests, config, CostModel(shape, FLOAT32, DeviceRates(1e9, 1e9)), shard_seconds=0.02)
    assert len(plan.shards) > 3
    futures = [engine.submit(shard_work(plan, shard, requests)) for shard in plan.shards]
    outputs = {output.request_id: output for future in futures for output in future.result(timeout=300)}
    engine.scheduler.check_integrity()
    assert len(outputs) == len(requests)
    return outputs, plan.summary.computed_tokens


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return shared_prefix_prompts()


@pytest.fixture(scope="module")
def reference(tiny_model: Path, requests: list[Request]) -> dict[str, RequestOutput]:
    """Nothing shared, held to transformers row by row."""
    config = EngineConfig(dtype="float32", sharing="none", kv_cache_memory=64 * 2**20)
    engine = build_engine(resolve_model(str(tiny_model)), config)
    outputs, planned = run(engine, requests, config)
    assert engine.counters().computed_prompt_tokens == planned == sum(len(r.prompt_token_ids) for r in requests)
    engine.close()
    oracle = Oracle(tiny_model)
    for request in requests:
        oracle.assert_same(request, outputs[request.request_id])
    return outputs


@pytest.mark.parametrize("budget", KV_TOKENS)
@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("seed", [None, 1], ids=["in order", "shuffled"])
def test_same_answers_whatever_the_plan(
    tiny_model: Path,
    requests: list[Request],
    reference: dict[str, RequestOutput],
    budget: str,
    sharing: Any,
    seed: int | None,
) -> None:
    files = resolve_model(str(tiny_model))
    config = EngineConfig(
        dtype="float32",
        sharing=sharing,
        max_num_batched_tokens=96,
        kv_cache_memory=KV_TOKENS[budget] * load_shape(files).kv_bytes_per_token(FLOAT32),
    )
    rows = list(requests)
    if seed is not None:
        random.Random(seed).shuffle(rows)
    engine = build_engine(files, config, detokenize=False)
    outputs, planned = run(engine, rows, config)
    counters = engine.counters()
    engine.close()
    assert counters.computed_prompt_tokens == planned
    assert counters.peak_kv_bytes <= config.kv_cache_memory
    oracle = None
    for request in requests:
        name = request.request_id
        ours, theirs = outputs[name], reference[name]
        if ours.label_scores is not None:
            assert theirs.label_scores is not None
            worst = max(abs(a.logprob - b.logprob) for a, b in zip(ours.label_scores, theirs.label_scores, strict=True))
            assert worst < 1e-3
        elif ours.token_ids != theirs.token_ids:
            oracle = oracle or Oracle(tiny_model)
            oracle.assert_same(request, ours)


def test_a_repeated_sample_draws_the_same_in_any_batch(tiny_model: Path, requests: list[Request]) -> None:
    params = SamplingParams(temperature=0.9, top_p=0.95, top_k=50, seed=7, max_tokens=12)
    texts = [replace(request, params=params, labels=None) for request in requests[:40]]
    config = EngineConfig(dtype="float32", kv_cache_memory=2**24)
    engine = build_engine(resolve_model(str(tiny_model)), config)
    together, _ = run(engine, texts, config)
    alone, _ = run(engine, list(reversed(texts)), replace(config, sharing="none"))
    engine.close()
    assert {k: v.token_ids for k, v in together.items()} == {k: v.token_ids for k, v in alone.items()}
    assert len({v.token_ids for v in together.values()}) > 30
