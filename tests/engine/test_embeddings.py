"""Embeddings beside transformers: each prompt through the model's body alone, its hidden states pooled by torch."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.loop.batch import plan_requests, run_plan
from engine.loop.build import build_engine
from engine.loop.engine import Engine
from engine.model.checkpoint import load_shape, resolve_model
from engine.pooling_params import POOLING, PoolingParams
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams
from kernels.kv_format import FLOAT32
from tests.engine.forward.gpu.test_attention import through_triton
from tests.engine.oracle import Oracle
from tests.engine.test_prompt_logprobs import assert_right as assert_logprobs
from tests.engine.test_prompt_logprobs import handed_over

TOLERANCE = 1e-4
MakeEngine = Callable[[int], Engine]


@pytest.fixture(scope="module")
def oracle(tiny_model: Path) -> Oracle:
    return Oracle(tiny_model)


@pytest.fixture(scope="module")
def engines(tiny_model: Path) -> Iterator[MakeEngine]:
    """Engines by the tokens of a step; the KV of two long prompts fits at once."""
    files = resolve_model(str(tiny_model))
    made: dict[int, Engine] = {}

    def engine_of(step_tokens: int) -> Engine:
        if step_tokens not in made:
            memory = 320 * load_shape(files).kv_bytes_per_token(FLOAT32)
            config = EngineConfig(dtype="float32", max_num_batched_tokens=step_tokens, kv_cache_memory=memory)
            made[step_tokens] = build_engine(files, config, detokenize=False)
        return made[step_tokens]

    yield engine_of
    for engine in made.values():
        engine.close()


@torch.inference_mode()
def expected(oracle: Oracle, request: Request) -> torch.Tensor:
    """As sentence-transformers pools (lasttoken, mean, weightedmean), cuts and normalises."""
    assert request.pooling is not None
    states = oracle.model.base_model(torch.tensor(request.prompt_token_ids, dtype=torch.long)[None])
    hidden = states.last_hidden_state[0].double()
    if request.pooling.pooling == "last":
        pooled = hidden[-1]
    else:
        steps = torch.arange(1, len(hidden) + 1, dtype=torch.float64)
        weights = steps if request.pooling.pooling == "weighted" else torch.ones_like(steps)
        pooled = (hidden * weights[:, None]).sum(0) / weights.sum()
    pooled = pooled[: request.pooling.dimensions]
    return torch.nn.functional.normalize(pooled, dim=0) if request.pooling.normalize else pooled


def assert_right(oracle: Oracle, request: Request, output: RequestOutput) -> None:
    assert output.error_type is None, output
    if request.pooling is None:
        assert output.embedding is None
        return
    wanted = expected(oracle, request).numpy()
    assert output.embedding is not None
    assert output.embedding.dtype == np.float32
    assert output.embedding.shape == wanted.shape
    assert np.abs(output.embedding - wanted).max() < TOLERANCE


def embeds(name: str, prompt: object, params: PoolingParams | None = None) -> Request:
    return Request(name, np.array(prompt, dtype=np.int32), labels=(), pooling=params or PoolingParams("mean"))


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Request], random.Random]:
    """Mostly embeddings, on a trie of three levels, equal prompts among them; and what decides the rest."""
    chance = random.Random(draw(st.integers(0, 2**32)))

    def tokens(most: int) -> list[int]:
        return [chance.randrange(100, 40_000) for _ in range(chance.randint(0, most))]

    roots = [tokens(30) for _ in range(2)]
    stems = [chance.choice(roots) + tokens(30) for _ in range(4)]
    requests: list[Request] = []
    for row in range(draw(st.integers(1, 16))):
        prompt = [chance.randrange(100, 40_000) for _ in range(not row)] + chance.choice(stems) + tokens(12)
        ids = np.array(prompt or [17], dtype=np.int32)
        if row and chance.random() < 0.2:
            ids = chance.choice(requests).prompt_token_ids
        first = chance.choice([None, None, 1])
        if chance.random() < 0.2:
            requests.append(Request(str(row), ids, SamplingParams(max_tokens=3), prompt_logprobs_from=first))
            continue
        pooling = PoolingParams(
            draw(st.sampled_from(POOLING)),  # type: ignore[arg-type]
            normalize=chance.random() < 0.5,
            dimensions=chance.choice([None, None, 1, 24]),
        )
        requests.append(Request(str(row), ids, labels=(), pooling=pooling, prompt_logprobs_from=first))
    return requests, chance


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=tables(), step_tokens=st.sampled_from([1, 7, 40, 512]), shard_seconds=st.sampled_from([1e9, 0.01, 0.002]))
def test_they_equal_pooled_hidden_states_whatever_is_shared(
    drawn: tuple[list[Request], random.Random],
    step_tokens: int,
    shard_seconds: float,
    oracle: Oracle,
    engines: MakeEngine,
) -> None:
    requests, chance = drawn
    outputs = handed_over(engines(step_tokens), requests, shard_seconds, chance)
    for request in requests:
        assert_right(oracle, request, outputs[request.request_id])
        assert_logprobs(oracle, request, outputs[request.request_id])


def test_a_shared_prefix_is_computed_once_and_the_head_never_runs(
    engines: MakeEngine, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines(40)

    def no_head(*_: object) -> torch.Tensor:
        raise AssertionError("the head ran")

    monkeypatch.setattr(engine.runner.model, "logits", no_head)
    monkeypatch.setattr(engine.runner.model, "best_tokens", no_head)
    stem = [*range(300, 390)]
    requests = [embeds(str(i), [*stem, 1000 + i, 7]) for i in range(5)]
    before = engine.counters().computed_prompt_tokens
    outputs = run_plan(engine, plan_requests(engine, requests), requests)
    assert engine.counters().computed_prompt_tokens - before == len(stem) + 5 * 2
    for output in outputs:
        assert_right(oracle, requests[int(output.request_id)], output)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_fewer_bits_give_nearly_the_same_direction(
    tiny_model: Path, oracle: Oracle, dtype: str, quantization: str
) -> None:
    config = EngineConfig(dtype=dtype, quantization=quantization, kv_cache_memory=2**22)  # type: ignore[arg-type]
    engine = build_engine(resolve_model(str(tiny_model)), config, detokenize=False)
    stem = [*range(500, 540)]
    requests = [embeds(pooling, [*stem, 3], PoolingParams(pooling)) for pooling in POOLING]  # type: ignore[arg-type]
    outputs = run_plan(engine, plan_requests(engine, requests), requests)
    engine.close()
    by_name = {output.request_id: output for output in outputs}
    for request in requests:
        got = by_name[request.request_id].embedding
        assert got is not None
        assert float(got @ expected(oracle, request).numpy()) > 0.98
        assert np.linalg.norm(got) == pytest.approx(1, abs=1e-6)


def test_on_a_gpu(tiny_model: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's kernels, and graphs that decode beside prompts whose states are pooled."""
    draw = np.random.default_rng(0)
    stem = draw.integers(3, 400, 21).tolist()
    requests = [
        embeds(pooling, [*stem, place, 5], PoolingParams(pooling))  # type: ignore[arg-type]
        for place, pooling in enumerate(POOLING)
    ]
    requests.append(Request("text", np.array([*stem[:9], 6], dtype=np.int32), SamplingParams(max_tokens=4)))
    outputs = through_triton(tiny_model, requests, monkeypatch).outputs
    for request in requests:
        assert_right(oracle, request, outputs[request.request_id])
    assert len(outputs["text"].token_ids) == 4


def test_a_step_in_parts_pools_what_the_whole_does(tiny_model: Path, oracle: Oracle) -> None:
    """The rows of one prompt are read in several parts, and a leaf that has no room is an error of its own."""
    config = EngineConfig(dtype="float32", kv_cache_memory=2**22, max_num_batched_tokens=256, block_size=8)
    engine = build_engine(resolve_model(str(tiny_model)), config, detokenize=False)
    stem = [*range(100, 140)]
    requests = [embeds(str(i), [*stem, *range(200 + 60 * i, 206 + 66 * i)]) for i in range(5)]
    forward, sizes, room = engine.runner.forward, [], 16

    def limited(step: object) -> object:
        if step.num_scheduled_tokens > room:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
        sizes.append(step.num_scheduled_tokens)  # type: ignore[attr-defined]
        return forward(step)  # type: ignore[arg-type]

    engine.runner.forward = limited  # type: ignore[method-assign, assignment]
    outputs = run_plan(engine, plan_requests(engine, requests), requests)
    engine.scheduler.check_integrity()
    engine.close()
    assert max(sizes) <= room
    failed = [output for output in outputs if output.error_type is not None]
    longer = [request.request_id for request in requests if len(request.prompt_token_ids) - len(stem) > room]
    assert sorted(output.request_id for output in failed) == longer
    assert {output.error_type for output in failed} <= {"OUT_OF_MEMORY"}
    for output in outputs:
        if output not in failed:
            assert_right(oracle, requests[int(output.request_id)], output)


@pytest.mark.fault(18)
def test_states_that_are_not_finite_are_an_error(tiny_model: Path) -> None:
    engine = build_engine(resolve_model(str(tiny_model)), EngineConfig(dtype="float32", kv_cache_memory=2**22))
    with torch.no_grad():
        engine.runner.model.body.embed_tokens.weight[4321] = torch.nan
    requests = [embeds("tainted", [17, 18, 4321, 19])]
    [output] = run_plan(engine, plan_requests(engine, requests), requests)
    engine.close()
    assert (output.error_type, output.error_message) == ("NON_FINITE", "the model's hidden states are not finite")
    assert output.embedding is None


def test_dimensions_are_cut_before_the_length_is_taken() -> None:
    pooled = np.array([3.0, 4.0, 12.0])
    assert PoolingParams("mean", dimensions=2).embedding(pooled).tolist() == pytest.approx([0.6, 0.8])
    assert PoolingParams("mean", normalize=False, dimensions=2).embedding(pooled).tolist() == [3, 4]
    assert PoolingParams("mean").embedding(np.zeros(3)).tolist() == [0, 0, 0]


def test_an_embedding_asks_for_nothing_behind_the_prompt() -> None:
    with pytest.raises(AssertionError):
        replace(embeds("a", [1]), labels=None)
