"""Log-probabilities of prompt tokens beside transformers: a plain forward pass of each prompt, nothing shared."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.device_rates import DeviceRates
from engine.forward import model_runner
from engine.loop.build import build_engine
from engine.loop.engine import Engine
from engine.model.checkpoint import load_shape, resolve_model
from engine.plan import ShardWork
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan, shard_work
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams
from kernels.kv_format import FLOAT32
from tests.engine.oracle import Oracle

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


def works(engine: Engine, requests: list[Request], shard_seconds: float) -> list[ShardWork]:
    cost = CostModel(engine.runner.model.shape, FLOAT32, DeviceRates(1e9, 1e9))
    plan = make_plan(requests, engine.config, cost, shard_seconds=shard_seconds)
    return [shard_work(plan, shard, requests) for shard in plan.shards]


def assert_right(oracle: Oracle, request: Request, output: RequestOutput) -> None:
    first, got = request.prompt_logprobs_from, output.prompt_logprobs
    assert output.error_type is None
    assert (got is None) == (first is None)
    if first is None or got is None:
        return
    prompt = torch.tensor(request.prompt_token_ids, dtype=torch.long)
    logits = oracle.logits(prompt.tolist())[:-1]
    logprobs = logits.log_softmax(-1).gather(-1, prompt[1:, None])[first - 1 :, 0].numpy()
    assert got.first == first
    assert got.logprobs.dtype == np.float32
    assert got.logprobs.shape == logprobs.shape
    assert np.abs(got.logprobs - logprobs).max(initial=0) < TOLERANCE
    assert got.is_greedy.tolist() == (logits.argmax(-1) == prompt[1:])[first - 1 :].tolist()
    assert got.token_ids.tolist() == prompt[first:].tolist()
    best = logits.log_softmax(-1)[first - 1 :].topk(request.num_prompt_alternatives)
    assert got.top_logprobs.shape == got.top_tokens.shape == best.values.shape
    assert np.abs(got.top_logprobs - best.values.numpy()).max(initial=0) < TOLERANCE
    # Two tokens that are nearer than the tolerance may stand in either order.
    ranked = logits.log_softmax(-1)[first - 1 :].gather(-1, torch.tensor(got.top_tokens, dtype=torch.long))
    assert (ranked - best.values).abs().numpy().max(initial=0) < TOLERANCE
    assert all(len(set(row)) == len(row) for row in got.top_tokens.tolist())


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Request], random.Random]:
    """Requests of all kinds on a trie of three levels, equal prompts among them; and what decides the rest."""
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
        labels = chance.choice([None, (), (np.array([5, 7], dtype=np.int32), np.array([9], dtype=np.int32))])
        first = chance.choice([None, 1, 1, chance.randint(1, 80)])
        params = SamplingParams(max_tokens=chance.randint(1, 6), prompt_logprobs=chance.choice([None, 0, 1, 5]))
        requests.append(Request(str(row), ids, params, labels, prompt_logprobs_from=first))
    return requests, chance


def handed_over(
    engine: Engine, requests: list[Request], shard_seconds: float, chance: random.Random
) -> dict[str, RequestOutput]:
    """What comes of shards in any order, some handed over when others are done: chunks end anywhere."""
    shards = works(engine, requests, shard_seconds)
    chance.shuffle(shards)
    futures, outputs = [], {}
    for work in shards:
        futures.append(engine.submit(work))
        if chance.random() < 0.3:
            futures[-1].result(timeout=120)
    for future in futures:
        outputs |= {output.request_id: output for output in future.result(timeout=120)}
    engine.scheduler.check_integrity()
    assert len(outputs) == len(requests)
    return outputs


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=tables(), step_tokens=st.sampled_from([1, 7, 40, 512]), shard_seconds=st.sampled_from([1e9, 0.01, 0.002]))
def test_they_equal_a_plain_forward_pass_whatever_is_shared(
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
        if request.labels:
            oracle.assert_same(request, outputs[request.request_id])


def test_greedy_tokens_are_told(engines: MakeEngine, oracle: Oracle) -> None:
    """Of a prompt that goes on as greedy decoding would, but for its last token."""
    start = Request("start", np.arange(200, 210, dtype=np.int32), SamplingParams(max_tokens=6, ignore_eos=True))
    text = oracle.generate(start)
    prompt = np.array([*start.prompt_token_ids.tolist(), *text, text[-1] + 1], dtype=np.int32)
    request = Request("a", prompt, labels=(), prompt_logprobs_from=10)
    engine = engines(7)
    [output] = engine.submit(works(engine, [request], 1e9)[0]).result(timeout=60)
    assert_right(oracle, request, output)
    assert output.finish_reason == "scored"
    assert output.label_scores == ()
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs.is_greedy.tolist() == [True] * 6 + [False]


def test_the_head_sees_the_rows_that_are_read_in_bounded_pieces(
    engines: MakeEngine, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, sizes = engines(512), []
    logits = engine.runner.model.logits

    def counted(hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        return logits(hidden)

    monkeypatch.setattr(engine.runner.model, "logits", counted)
    monkeypatch.setattr(model_runner, "HEAD_ROWS", 16)
    stem = np.arange(300, 350, dtype=np.int32)
    prompts = [np.append(stem, [ids]).astype(np.int32) for ids in (1000, 1001, 1002)]
    requests = [Request(str(i), prompt, labels=(), prompt_logprobs_from=11) for i, prompt in enumerate(prompts)]
    outputs = engine.submit(works(engine, requests, 1e9)[0]).result(timeout=60)
    for output in outputs:
        assert_right(oracle, requests[int(output.request_id)], output)
    # The stem's rows 10 to 49, once; no row of the prompts' ends.
    assert sizes == [16, 16, 8]


def test_a_prompt_whose_logits_are_not_finite_is_an_error(tiny_model: Path) -> None:
    engine = build_engine(resolve_model(str(tiny_model)), EngineConfig(dtype="float32", kv_cache_memory=2**22))
    embeddings = engine.runner.model.body.embed_tokens
    embeddings.weight = torch.nn.Parameter(embeddings.weight.clone(), requires_grad=False)  # the head keeps its own
    embeddings.weight[4321] = torch.nan
    tainted = np.array([17, 18, 4321, 19], dtype=np.int32)
    requests = [
        Request("before", tainted[:2], labels=(), prompt_logprobs_from=1),
        Request("behind", tainted, labels=(), prompt_logprobs_from=3),
    ]
    [work] = works(engine, requests, 1e9)
    outputs = {output.request_id: output for output in engine.submit(work).result(timeout=60)}
    engine.close()
    assert outputs["behind"].error_type == "NON_FINITE"
    assert outputs["before"].error_type is None
