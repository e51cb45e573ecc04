"""How near an output was to being another one, held to transformers' logits."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.config import EngineConfig
from engine.loop.batch import plan_requests, run_plan
from engine.loop.build import build_engine
from engine.loop.engine import Engine
from engine.model.checkpoint import resolve_model
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams, StructuredOutputs
from tests.engine.oracle import Oracle

CONFIG = EngineConfig(dtype="float32", kv_cache_memory=2**22)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    engine = build_engine(resolve_model(str(tiny_model)), CONFIG)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def oracle(tiny_model: Path) -> Oracle:
    return Oracle(tiny_model)


def run(engine: Engine, requests: list[Request]) -> dict[str, RequestOutput]:
    outputs = run_plan(engine, plan_requests(engine, requests), requests)
    return {output.request_id: output for output in outputs}


def prompts(count: int) -> list[list[int]]:
    draw = np.random.default_rng(7)
    stem = draw.integers(3, 400, 20).tolist()
    return [[*stem[: 20 - row % 3], *draw.integers(3, 400, 2 + row).tolist()] for row in range(count)]


def logits_behind(oracle: Oracle, prompt: list[int], text: tuple[int, ...]) -> torch.Tensor:
    """(len(text), vocab_size): what each token of the text was chosen from."""
    with torch.no_grad():
        made: torch.Tensor = oracle.model(torch.tensor([[*prompt, *text]])).logits[0]
    return made[len(prompt) - 1 : -1]


def lead(logits: torch.Tensor) -> torch.Tensor:
    best, behind = logits.topk(2).values.unbind(-1)
    return best - behind


@pytest.mark.parametrize("logprobs", [None, 0], ids=["no logits made", "logits made"])
def test_a_greedy_text_has_its_nearest_token_s(engine: Engine, oracle: Oracle, logprobs: int | None) -> None:
    given = prompts(12)
    how = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=logprobs)
    outputs = run(engine, [Request(str(i), np.array(ids, np.int32), how) for i, ids in enumerate(given)])
    for i, ids in enumerate(given):
        output = outputs[str(i)]
        wanted = float(lead(logits_behind(oracle, ids, output.token_ids)).min())
        assert output.min_margin == pytest.approx(wanted, abs=2e-5)


def test_tokens_that_a_text_may_not_have_do_not_count(engine: Engine, oracle: Oracle) -> None:
    allowed = (10, 11, 12, 13)
    [prompt] = prompts(1)
    how = SamplingParams(max_tokens=5, ignore_eos=True, allowed_token_ids=allowed)
    output = run(engine, [Request("0", np.array(prompt, np.int32), how)])["0"]
    wanted = lead(logits_behind(oracle, prompt, output.token_ids)[:, list(allowed)]).min()
    assert output.min_margin == pytest.approx(float(wanted), abs=2e-5)
    alone = SamplingParams(max_tokens=3, ignore_eos=True, allowed_token_ids=(10,))
    assert run(engine, [Request("0", np.array(prompt, np.int32), alone)])["0"].min_margin is None


def test_a_structured_text_s_is_at_most_that_among_what_its_grammar_allows(engine: Engine, oracle: Oracle) -> None:
    assert engine.tokenizer is not None
    how = SamplingParams(max_tokens=12, structured_outputs=StructuredOutputs(regex="[0-9]{4}"))
    digits = [token for token in range(len(engine.tokenizer)) if engine.tokenizer.decode([token]).isdecimal()]
    given = prompts(6)
    outputs = run(engine, [Request(str(i), np.array(ids, np.int32), how) for i, ids in enumerate(given)])
    for i, ids in enumerate(given):
        output = outputs[str(i)]
        first = lead(logits_behind(oracle, ids, output.token_ids)[0, digits])
        assert output.min_margin is None or output.min_margin <= float(first) + 2e-5


def test_a_text_s_margin_is_that_of_its_greedy_flag(engine: Engine, oracle: Oracle) -> None:
    """The worst token of the one label, on whichever side of the others it is."""
    given = prompts(6)
    texts = run(
        engine,
        [
            Request(str(i), np.array(ids, np.int32), SamplingParams(max_tokens=3, ignore_eos=True))
            for i, ids in enumerate(given)
        ],
    )
    labels = [texts[str(i)].token_ids if i % 2 else (5, 6, 7) for i in range(6)]
    asked = [
        Request(str(i), np.array(ids, np.int32), labels=(np.array(label, np.int32),))
        for i, (ids, label) in enumerate(zip(given, labels, strict=True))
    ]
    outputs = run(engine, asked)
    for i, (ids, label) in enumerate(zip(given, labels, strict=True)):
        logits = logits_behind(oracle, ids, label)
        own = logits.gather(1, torch.tensor(label)[:, None])[:, 0]
        others = logits.scatter(1, torch.tensor(label)[:, None], -torch.inf).amax(1)
        worst = float((own - others).min())
        scores = outputs[str(i)].label_scores
        assert scores is not None
        assert scores[0].is_greedy == (worst > 0) == bool(i % 2)
        assert outputs[str(i)].min_margin == pytest.approx(abs(worst), abs=2e-5)


def test_where_nothing_is_chosen_there_is_none(engine: Engine) -> None:
    [prompt] = prompts(1)
    labels = (np.array([5], np.int32), np.array([6], np.int32))
    asked = [
        Request("labels", np.array(prompt, np.int32), labels=labels),
        Request("prompt", np.array(prompt, np.int32), labels=(), prompt_logprobs_from=1),
    ]
    assert {output.min_margin for output in run(engine, asked).values()} == {None}
