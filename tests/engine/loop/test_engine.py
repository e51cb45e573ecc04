import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.config import Dtype, EngineConfig, Quantization
from engine.device_rates import DeviceRates
from engine.errors import UserError
from engine.forward.model_runner import ModelRunner
from engine.loop import build
from engine.loop.build import build_engine
from engine.loop.engine import Engine
from engine.loop.stop_words import bad_word_ids
from engine.machine.device import Device
from engine.model.checkpoint import resolve_model
from engine.plan import ShardWork
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan, shard_work
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams
from kernels.kv_format import FLOAT32
from tests.engine.oracle import Oracle

CONFIG = EngineConfig(dtype="float32", kv_cache_memory=2**24)


def prompt(engine: Engine, text: str) -> np.ndarray:
    assert engine.tokenizer is not None
    return np.array(engine.tokenizer(text)["input_ids"], dtype=np.int32)


def work(engine: Engine, requests: list[Request]) -> ShardWork:
    plan = make_plan(requests, CONFIG, CostModel(engine.runner.model.shape, FLOAT32, DeviceRates(1e9, 1e9)))
    return shard_work(plan, plan.shards[0], requests)


def run(engine: Engine, requests: list[Request]) -> dict[str, RequestOutput]:
    return {output.request_id: output for output in engine.submit(work(engine, requests)).result(timeout=60)}


def one(engine: Engine, **params: object) -> RequestOutput:
    sampling = SamplingParams(**({"max_tokens": 24} | params))  # type: ignore[arg-type]
    return run(engine, [Request("a", prompt(engine, "The river bends"), sampling)])["a"]


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    engine = build_engine(resolve_model(str(tiny_model)), CONFIG)
    yield engine
    engine.close()


def test_an_engine_launches_on_its_own_gpu(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current device is a thread's own: the engine's thread sets it, before it puts anything there."""
    current: dict[int, str] = {}
    monkeypatch.setattr(torch.cuda, "set_device", lambda name: current.update({threading.get_ident(): name}))
    monkeypatch.setattr(build, "resolve_device", lambda _: Device("cuda:1", "bfloat16", "cuda:1"))

    def load(*_: object, **__: object) -> None:
        raise UserError(f"loading on {current[threading.get_ident()]}")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("engine.forward.load_runner.load_model", load)
    monkeypatch.setattr("engine.machine.memory.device_memory", lambda _: 2**40)
    with pytest.raises(UserError, match="loading on cuda:1"):
        build_engine(resolve_model(str(tiny_model)), CONFIG)
    assert threading.get_ident() not in current


def test_text_is_the_tokens_decoded(engine: Engine) -> None:
    output = one(engine)
    assert engine.tokenizer is not None
    assert output.finish_reason == "length"
    assert len(output.token_ids) == 24
    assert output.text == engine.tokenizer.decode(output.token_ids, skip_special_tokens=True)


def test_a_stop_string_ends_the_text_before_it_wherever_tokens_begin(engine: Engine) -> None:
    whole = one(engine).text
    assert whole is not None
    stop = whole[10:14]
    output = one(engine, stop=("never there", stop))
    assert output.finish_reason == "stop"
    assert output.text == whole[: whole.index(stop)]
    late = one(engine, stop=(stop,), min_tokens=24)
    assert (late.finish_reason, late.text) == ("length", whole)


def test_a_stop_string_ends_no_text_that_is_too_short(engine: Engine) -> None:
    """As in vLLM: what the first `min_tokens` tokens hold whole is text, and one that ends behind them is a stop."""
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    whole = one(engine, ignore_eos=True)
    heads = [tokenizer.decode(whole.token_ids[:count], skip_special_tokens=True) for count in range(25)]
    assert whole.text is not None
    early, across = heads[3][-3:], heads[4][len(heads[3]) - 2 :]
    assert whole.text.count(early) == whole.text.count(across) == 1
    for least, ended in [(0, True), (2, True), (3, False), (4, False)]:
        output = one(
            engine, stop=(early, "a stop that is far longer than any other"), min_tokens=least, ignore_eos=True
        )
        assert (output.finish_reason == "stop") is ended, least
    for least, ended in [(3, True), (4, False)]:
        output = one(engine, stop=(across,), min_tokens=least, ignore_eos=True)
        assert output.text == (whole.text[: whole.text.index(across)] if ended else whole.text)


def test_a_stop_string_may_stay_in_the_text(engine: Engine) -> None:
    whole = one(engine).text
    assert whole is not None
    stop = whole[10:14]
    output = one(engine, stop=(stop,), include_stop_str_in_output=True)
    assert (output.finish_reason, output.text) == ("stop", whole[: whole.index(stop) + len(stop)])


def test_a_stop_string_that_is_a_special_token_ends_the_text(engine: Engine) -> None:
    """Though no text shows it."""
    assert engine.tokenizer is not None
    special = engine.tokenizer.eos_token
    end = engine.tokenizer.convert_tokens_to_ids(special)
    forced = {"logit_bias": ((end, 100.0),), "ignore_eos": True, "max_tokens": 5}
    assert one(engine, **forced).token_ids == (end,) * 5
    output = one(engine, stop=(special, "never there"), **forced)
    assert (output.finish_reason, output.token_ids, output.text) == ("stop", (end,), "")
    assert one(engine, stop=(special,), include_stop_str_in_output=True, **forced).text == special


@pytest.fixture(params=[0, 1], ids=["in turn", "a step ahead"])
def any_engine(request: pytest.FixtureRequest, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """With steps in flight as well, whose tokens the host has not seen when the next is sampled."""
    monkeypatch.setattr(ModelRunner, "num_steps_ahead", request.param)
    engine = build_engine(resolve_model(str(tiny_model)), CONFIG)
    yield engine
    engine.close()


def test_rules_for_logits_are_transformers(any_engine: Engine, tiny_model: Path) -> None:
    """Greedy texts of many rows at once, each with its own parameters."""
    text = prompt(any_engine, "The river bends")
    plain = one(any_engine, ignore_eos=True).token_ids
    bad = any_engine.tokenizer.decode(plain[3:5])  # type: ignore[union-attr]
    ways: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"bad_words": (bad,)}, {"bad_words_ids": [list(ids) for ids in bad_word_ids(any_engine.tokenizer, (bad,))]}),  # type: ignore[arg-type]
        ({"logit_bias": ((plain[0], -5.0), (9, 0.5))}, {"sequence_bias": {(plain[0],): -5.0, (9,): 0.5}}),
        (
            {"allowed_token_ids": (5, 6, 7, 8)},
            {"suppress_tokens": [t for t in range(any_engine.runner.model.shape.vocab_size) if t not in (5, 6, 7, 8)]},
        ),
    ]
    requests = [
        Request(str(i), text, SamplingParams(max_tokens=24, ignore_eos=True, **ours))
        for i, (ours, _) in enumerate(ways)
    ]
    outputs = run(any_engine, requests)
    oracle = Oracle(tiny_model)
    for i, (ours, theirs) in enumerate(ways):
        assert list(outputs[str(i)].token_ids) == oracle.generate(requests[i], **theirs), ours
    assert len({outputs[str(i)].token_ids for i in range(len(ways))}) == len(ways)


def test_penalties_for_what_the_text_has(any_engine: Engine, tiny_model: Path) -> None:
    """Token by token out of transformers' logits; a penalty this high lets no token come again."""
    text = prompt(any_engine, "The river bends")
    oracle = Oracle(tiny_model)
    for frequency, presence in ((0.7, 0.0), (0.0, 2.0), (-0.5, 0.3)):
        params = SamplingParams(
            max_tokens=16, ignore_eos=True, frequency_penalty=frequency, presence_penalty=presence, logprobs=0
        )
        output = run(any_engine, [Request("a", text, params)])["a"]
        tokens: list[int] = []
        for _ in range(16):
            logits = oracle.logits([*text.tolist(), *tokens])[-1]
            counts = torch.bincount(torch.tensor(tokens, dtype=torch.int64), minlength=len(logits))
            tokens.append(int((logits - frequency * counts - presence * (counts > 0)).argmax()))
        assert list(output.token_ids) == tokens
        assert output.logprobs is not None
        wanted = oracle.logits([*text.tolist(), *tokens]).log_softmax(-1)[len(text) - 1 : -1]
        got = [token.logprob for token in output.logprobs]
        assert got == pytest.approx([float(row[token]) for row, token in zip(wanted, tokens, strict=True)], abs=1e-3)


def test_a_stop_token_ends_the_text_and_min_tokens_bars_it(engine: Engine) -> None:
    tokens = one(engine).token_ids
    stop = tokens[5]
    output = one(engine, stop_token_ids=(stop,))
    assert output.finish_reason == "stop"
    assert output.token_ids == tokens[: tokens.index(stop) + 1]
    barred = one(engine, stop_token_ids=(stop,), min_tokens=12)
    assert stop not in barred.token_ids[:12]
    assert len(barred.token_ids) >= 12


def test_end_of_sequence_stops_unless_it_is_ignored(tiny_model: Path) -> None:
    files = resolve_model(str(tiny_model))
    engine = build_engine(files, CONFIG)
    tokens = one(engine, ignore_eos=True).token_ids
    engine.runner.model.shape = replace(engine.runner.model.shape, eos_token_ids=(tokens[3],))
    assert one(engine).token_ids == tokens[: tokens.index(tokens[3]) + 1]
    assert one(engine).finish_reason == "stop"
    assert one(engine, ignore_eos=True).token_ids == tokens
    engine.close()


def test_logprobs_equal_transformers(engine: Engine, tiny_model: Path) -> None:
    output = one(engine, logprobs=3)
    assert output.logprobs is not None
    ids = prompt(engine, "The river bends").tolist()
    logprobs = Oracle(tiny_model).logits([*ids, *output.token_ids]).log_softmax(-1)[len(ids) - 1 : -1]
    best = logprobs.topk(3, -1)
    for place, got in enumerate(output.logprobs):
        assert got.token_id == output.token_ids[place]
        assert got.logprob == pytest.approx(float(logprobs[place, got.token_id]), abs=1e-3)
        assert [token for token, _ in got.top] == best.indices[place].tolist()
        assert [value for _, value in got.top] == pytest.approx(best.values[place].tolist(), abs=1e-3)
    assert output.cumulative_logprob == pytest.approx(sum(got.logprob for got in output.logprobs))
    assert one(engine).logprobs is None


def test_a_text_of_greatest_logits_makes_none(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokens are those that logits give to whom asks for more than tokens."""
    if engine.runner.model._screened is None:
        pytest.skip("this processor multiplies no bytes")
    ways = {"logprobs": 0}, {"min_tokens": 24, "ignore_eos": True}, {"temperature": 0.5, "top_k": 1}
    expected = [one(engine, **way).token_ids for way in ways]  # type: ignore[arg-type]
    monkeypatch.setattr(engine.runner.model, "logits", None)
    assert [one(engine, ignore_eos="ignore_eos" in way).token_ids for way in ways] == expected


def test_cached_tokens_are_those_that_another_request_paid_for(engine: Engine) -> None:
    stem, params = "In the beginning there was a long stem", SamplingParams(max_tokens=1)
    requests = [Request(tail, prompt(engine, f"{stem} {tail}"), params) for tail in ("one", "two", "three")]
    outputs = run(engine, requests)
    shared = len(prompt(engine, stem))
    assert sorted(output.num_cached_tokens for output in outputs.values()) == [0, shared, shared]


def test_the_same_prompt_asked_in_many_ways_is_computed_once(engine: Engine, tiny_model: Path) -> None:
    ids = prompt(engine, "A prompt asked in many ways")
    labels = (np.array([5], dtype=np.int32), np.array([7, 8], dtype=np.int32))
    requests = [Request("greedy", ids, SamplingParams(max_tokens=5)), Request("choice", ids, labels=labels)]
    requests += [Request(f"s{i}", ids, SamplingParams(max_tokens=5, temperature=1, seed=i)) for i in range(3)]
    before = engine.counters().computed_prompt_tokens
    outputs = run(engine, requests)
    assert engine.counters().computed_prompt_tokens - before == len(ids)
    oracle = Oracle(tiny_model)
    for name in (0, 1):
        oracle.assert_same(requests[name], outputs[requests[name].request_id])
    assert len({outputs[f"s{i}"].token_ids for i in range(3)}) == 3


@pytest.mark.parametrize("others", [1, 2, 3])
def test_texts_of_one_prompt_beside_other_rows_that_are_read(engine: Engine, tiny_model: Path, others: int) -> None:
    """Three texts begin at one row: with two other rows, the samples are as many as the rows that are read."""
    ids = prompt(engine, "A prompt asked in many ways")
    texts = [Request(f"t{most}", ids, SamplingParams(max_tokens=most)) for most in (3, 4, 5)]
    labels = (np.array([5], dtype=np.int32),)
    asked = [Request(f"l{i}", prompt(engine, f"Another prompt, the {i}th"), labels=labels) for i in range(others)]
    oracle = Oracle(tiny_model)
    for requests in ([*texts, *asked], [*asked, *texts]):
        outputs = run(engine, requests)
        for request in requests:
            oracle.assert_same(request, outputs[request.request_id])


def test_a_request_that_cannot_fit_is_an_error_and_the_others_are_scored(engine: Engine) -> None:
    fine = Request("fine", prompt(engine, "short"), SamplingParams(max_tokens=2))
    huge = Request("huge", np.full(1024, 9, dtype=np.int32), SamplingParams(max_tokens=2))
    outputs = run(engine, [huge, fine])
    assert outputs["huge"].error_type == "CONTEXT_OVERFLOW"
    assert len(outputs["fine"].token_ids) == 2


@pytest.mark.fault(18)
def test_logits_that_are_not_finite_make_an_error_row(tiny_model: Path) -> None:
    engine = build_engine(resolve_model(str(tiny_model)), CONFIG)
    table = engine.runner.model.body.embed_tokens.weight
    with torch.no_grad():
        table[4321] = torch.nan
    tainted, params = np.array([17, 4321, 18], dtype=np.int32), SamplingParams(max_tokens=3)
    labels = (np.array([3], dtype=np.int32),)
    outputs = run(
        engine,
        [Request("text", tainted, params), Request("choice", tainted, labels=labels)],
    )
    assert {name: output.error_type for name, output in outputs.items()} == {
        "text": "NON_FINITE",
        "choice": "NON_FINITE",
    }
    engine.close()


@pytest.mark.fault(18)
@pytest.mark.parametrize(("dtype", "quantization"), [("float32", "none"), ("bfloat16", "none"), ("float32", "int8")])
def test_a_prompt_that_is_not_finite_is_nothing_to_those_beside_it(
    tiny_model: Path, dtype: Dtype, quantization: Quantization
) -> None:
    config = replace(CONFIG, dtype=dtype, quantization=quantization)
    engine = build_engine(resolve_model(str(tiny_model)), config)
    embeddings = engine.runner.model.body.embed_tokens
    embeddings.weight = torch.nn.Parameter(embeddings.weight.clone(), requires_grad=False)  # the head keeps its own
    embeddings.weight[4321] = torch.nan
    prompts = {str(i): np.arange(100 * i + 1, 100 * i + 8 + i, dtype=np.int32) for i in range(9)}
    others = [Request(name, ids, SamplingParams(max_tokens=6, ignore_eos=True)) for name, ids in prompts.items()]
    wanted = run(engine, others)
    tainted = [
        replace(
            r,
            request_id=f"not {r.request_id}",
            prompt_token_ids=np.append(r.prompt_token_ids[::-1], 4321).astype(np.int32),
        )
        for r in others
    ]
    outputs = run(engine, [request for pair in zip(others, tainted, strict=True) for request in pair])
    engine.close()
    assert {outputs[r.request_id].error_type for r in tainted} == {"NON_FINITE"}
    assert {name: outputs[name].token_ids for name in prompts} == {name: o.token_ids for name, o in wanted.items()}


def test_outputs_are_told_one_by_one(engine: Engine) -> None:
    told: list[str] = []
    requests = [Request(str(i), prompt(engine, f"row {i}"), SamplingParams(max_tokens=i + 1)) for i in range(4)]
    engine.submit(work(engine, requests), lambda output: told.append(output.request_id)).result(timeout=60)
    assert sorted(told) == ["0", "1", "2", "3"]
    assert engine.submit(ShardWork("empty", 0, "s", (), (), ())).result(timeout=60) == []


def test_a_request_whose_adapter_is_not_there_is_refused_and_never_answered_without(engine: Engine) -> None:
    request = Request("a", prompt(engine, "The river bends"), adapter="poems")
    with pytest.raises(UserError, match="adapter poems is no folder"):
        engine.submit(work(engine, [request])).result(timeout=60)
    assert one(engine).finish_reason == "length", "and the engine goes on"
