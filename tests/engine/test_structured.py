"""Structured output through the whole engine: what ends validates, whatever runs beside it."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from engine.config import EngineConfig
from engine.forward.model_runner import ModelRunner
from engine.loop.batch import plan_requests, run_plan
from engine.loop.build import build_engine
from engine.loop.engine import Engine
from engine.loop.output_processor import OutputState
from engine.model.checkpoint import resolve_model
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams, StructuredOutputs
from tests.engine.grammar.random_schemas import Schema, random_schema
from tests.engine.oracle import Oracle

CONFIG = EngineConfig(dtype="float32", kv_cache_memory=2**26)
RECORD: Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "licence": {"enum": ["MIT", "BSD-3-Clause", "Apache-2.0"]},
        "population": {"type": "integer", "minimum": 0, "maximum": 99999},
    },
    "required": ["name", "licence", "population"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    engine = build_engine(resolve_model(str(tiny_model)), CONFIG)
    yield engine
    engine.close()


@pytest.fixture(params=[0, 1], ids=["in turn", "a step ahead"])
def any_engine(request: pytest.FixtureRequest, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """With steps in flight as well: a structured row's next mask needs a token that is not there yet."""
    monkeypatch.setattr(ModelRunner, "num_steps_ahead", request.param)
    engine = build_engine(resolve_model(str(tiny_model)), CONFIG)
    yield engine
    engine.close()


def schema(content: object) -> StructuredOutputs:
    return StructuredOutputs(json=json.dumps(content))


def asked(engine: Engine, name: str, structured: StructuredOutputs | None, **params: Any) -> Request:
    assert engine.tokenizer is not None
    ids = np.array(engine.tokenizer(f"The river bends {name}")["input_ids"], dtype=np.int32)
    return Request(name, ids, SamplingParams(**({"max_tokens": 150} | params), structured_outputs=structured))


def run(engine: Engine, requests: Sequence[Request]) -> dict[str, RequestOutput]:
    """All of them at once; nothing is left in the scheduler."""
    outputs = run_plan(engine, plan_requests(engine, list(requests)), list(requests))
    engine.scheduler.check_integrity()
    return {output.request_id: output for output in outputs}


def one(engine: Engine, structured: StructuredOutputs | None, **params: Any) -> RequestOutput:
    return run(engine, [asked(engine, "a", structured, **params)])["a"]


def likelier_ends(engine: Engine) -> tuple[tuple[int, float], ...]:
    assert engine.tokenizer is not None
    return tuple((token, 4.0) for token in engine.tokenizer.convert_tokens_to_ids(['"', '",', '"]', '"}', "]", "}"]))


def check_schemas(engine: Engine, seeds: range) -> int:
    """Half of them greedy, half drawn; the number of rows that ended, all of which validate.

    A random model would go on for long where it may: what ends strings and lists is made likelier.
    """
    ends = likelier_ends(engine)
    ways = [{"temperature": float(seed % 2), "seed": seed, "logit_bias": ends} for seed in seeds]
    rows = [asked(engine, str(seed), schema(random_schema(seed)), **way) for seed, way in zip(seeds, ways, strict=True)]
    outputs = run(engine, rows)
    ended = 0
    for seed in seeds:
        output = outputs[str(seed)]
        assert output.finish_reason in ("stop", "length"), (seed, output.error_message)
        if output.finish_reason == "stop":
            assert output.text is not None
            Draft202012Validator(random_schema(seed)).validate(json.loads(output.text))
            ended += 1
        else:
            assert len(output.token_ids) == 150
    return ended


def test_random_schemas_in_one_batch(any_engine: Engine) -> None:
    assert check_schemas(any_engine, range(40)) > 35


@pytest.mark.nightly
def test_a_thousand_random_schemas(engine: Engine) -> None:
    ended = sum(check_schemas(engine, range(first, first + 100)) for first in range(0, 1000, 100))
    assert ended > 850


@pytest.mark.parametrize(
    ("structured", "check"),
    [
        (StructuredOutputs(json_object=True), lambda text: isinstance(json.loads(text), dict)),
        (
            StructuredOutputs(regex=r"\+\d{2} \d{3}-\d{4}"),
            lambda text: re.fullmatch(r"\+\d{2} \d{3}-\d{4}", text, re.ASCII),
        ),
        (StructuredOutputs(choice=(" blue", " green", "größe")), lambda text: text in (" blue", " green", "größe")),
        (
            StructuredOutputs(grammar='start: NUMBER (" + " NUMBER)~1..3\nNUMBER: /[1-9][0-9]{0,2}/'),
            lambda text: re.fullmatch(r"[1-9]\d{0,2}( \+ [1-9]\d{0,2}){1,3}", text),
        ),
    ],
    ids=["json_object", "regex", "choice", "grammar"],
)
def test_each_way_to_ask(any_engine: Engine, structured: StructuredOutputs, check: Callable[[str], Any]) -> None:
    way = {"temperature": 1.0, "max_tokens": 60, "logit_bias": likelier_ends(any_engine)}
    rows = [asked(any_engine, str(i), structured, seed=i, **way) for i in range(6)]
    outputs = run(any_engine, rows).values()
    texts = [output.text for output in outputs if output.finish_reason == "stop"]
    assert texts
    for text in texts:
        assert text is not None
        assert check(text), text


def test_rows_of_all_kinds_beside_each_other(any_engine: Engine, tiny_model: Path) -> None:
    """A structured row changes nothing for one that is not, and is not changed by it."""
    structured = [asked(any_engine, f"s{i}", schema(RECORD)) for i in range(5)]
    plain = [asked(any_engine, f"p{i}", None, max_tokens=5 * i + 3, ignore_eos=True) for i in range(5)]
    oracle = Oracle(tiny_model)
    outputs = run(any_engine, [row for pair in zip(structured, plain, strict=True) for row in pair])
    alone = run(any_engine, structured)
    for row, other in zip(structured, plain, strict=True):
        assert outputs[row.request_id].token_ids == alone[row.request_id].token_ids
        assert list(outputs[other.request_id].token_ids) == oracle.generate(other)


def test_neither_order_nor_batch_changes_a_text(engine: Engine) -> None:
    rows = [asked(engine, str(seed), schema(random_schema(seed)), max_tokens=60) for seed in range(24)]
    together = run(engine, rows)
    backwards = run(engine, rows[::-1])
    few = {name: output for first in range(0, 24, 5) for name, output in run(engine, rows[first : first + 5]).items()}
    for name, output in together.items():
        assert output.token_ids == backwards[name].token_ids == few[name].token_ids
        assert output.text == backwards[name].text == few[name].text


def test_forced_text_takes_no_steps_of_its_own(engine: Engine) -> None:
    """A step gives a token, and all that follows from it."""
    words = "a sentence of many words that nothing is left open of"
    content = {"type": "object", "properties": {"x": {"enum": [f"yes, {words}", f"no, {words}"]}}, "required": ["x"]}
    before = engine.counters()
    output = one(engine, schema(content | {"additionalProperties": False}))
    after = engine.counters()
    assert output.finish_reason == "stop"
    assert words in (output.text or "")
    assert after.generated_tokens - before.generated_tokens == len(output.token_ids) > 12
    assert after.steps - before.steps <= 5


def test_log_probabilities_are_the_models_and_change_no_text(any_engine: Engine, tiny_model: Path) -> None:
    """Forced tokens have theirs too, for which each is asked of the model."""
    rows = [asked(any_engine, str(i), schema(RECORD)) for i in range(3)]
    with_them = [asked(any_engine, str(i), schema(RECORD), logprobs=2) for i in range(3)]
    fast, slow = run(any_engine, rows), run(any_engine, with_them)
    oracle = Oracle(tiny_model)
    for row in rows:
        output = slow[row.request_id]
        assert output.token_ids == fast[row.request_id].token_ids
        assert output.logprobs is not None
        ids = row.prompt_token_ids.tolist()
        wanted = oracle.logits([*ids, *output.token_ids]).log_softmax(-1)[len(ids) - 1 : -1]
        for place, token in enumerate(output.logprobs):
            assert token.token_id == output.token_ids[place]
            assert token.logprob == pytest.approx(float(wanted[place, token.token_id]), abs=1e-3)
            assert token.top[0][0] == int(wanted[place].argmax())


def test_a_forced_text_longer_than_a_step_is_computed_in_several(tiny_model: Path) -> None:
    """And comes to the same."""
    words = " ".join(f"word{number}" for number in range(40))
    structured = schema(
        {"type": "array", "prefixItems": [{"const": words}, {"type": "integer"}], "items": False, "minItems": 2}
    )
    found = []
    for tokens in (16, 1024):
        config = EngineConfig(dtype="float32", kv_cache_memory=2**26, max_num_batched_tokens=tokens)
        engine = build_engine(resolve_model(str(tiny_model)), config)
        outputs = run(
            engine, [asked(engine, str(i), structured, max_tokens=400, seed=1, temperature=1) for i in range(3)]
        )
        found.append([(output.finish_reason, output.text) for output in outputs.values()])
        engine.close()
    assert found[0] == found[1]
    assert words in found[0][0][1]


def test_a_text_that_is_cut_says_so(engine: Engine) -> None:
    """Within what is forced, and in a schema that never ends."""
    output = one(engine, schema({"const": "a long text that nothing is left open of"}), max_tokens=4)
    assert (output.finish_reason, len(output.token_ids)) == ("length", 4)
    assert '"a long text that nothing is left open of"'.startswith(output.text or "no text")
    parts = {"n": {"type": "integer"}, "a": {"$ref": "#"}}
    endless = {"type": "object", "properties": parts, "required": ["n", "a"], "additionalProperties": False}
    output = one(engine, schema(endless), max_tokens=40)
    assert (output.finish_reason, len(output.token_ids)) == ("length", 40)


def test_other_parameters_hold_beside_a_grammar(any_engine: Engine) -> None:
    assert any_engine.tokenizer is not None
    (eos,) = any_engine.runner.model.shape.eos_token_ids
    letters = StructuredOutputs(regex="[a-z]*")
    short = one(any_engine, letters, logit_bias=((eos, 100.0),))
    assert (short.finish_reason, short.text) == ("stop", "")
    longer = one(any_engine, letters, logit_bias=((eos, 100.0),), min_tokens=3)
    assert (longer.finish_reason, len(longer.token_ids)) == ("stop", 4)
    endless = one(any_engine, letters, logit_bias=((eos, 100.0),), ignore_eos=True, max_tokens=9)
    assert (endless.finish_reason, len(endless.token_ids)) == ("length", 9)
    ids = any_engine.tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    few = one(any_engine, letters, allowed_token_ids=tuple(ids), max_tokens=9, frequency_penalty=1.5)
    assert set(few.text or "") == {"a", "b", "c"}
    none = one(any_engine, StructuredOutputs(regex="[0-9]"), allowed_token_ids=tuple(ids))
    assert (none.finish_reason, none.error_type) == ("error", "NO_TOKEN")


def test_a_token_that_a_row_names_ends_a_text_only_where_the_grammar_does(engine: Engine) -> None:
    """As chat models' ends of a turn do."""
    assert engine.tokenizer is not None
    brace = engine.tokenizer.convert_tokens_to_ids("}")
    inner = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "additionalProperties": False}
    outer = {"type": "array", "items": inner, "minItems": 2, "maxItems": 2}
    output = one(engine, schema(outer), stop_token_ids=(brace,))
    assert (output.finish_reason, output.text) == ("stop", '[{"a": null}, {"a": null}]')


def test_a_grammar_that_nothing_satisfies_is_an_error_row(engine: Engine) -> None:
    rows = [asked(engine, "bad", schema({"$ref": "#"})), asked(engine, "good", schema(RECORD))]
    outputs = run(engine, rows)
    assert outputs["bad"].error_type == "BAD_GRAMMAR"
    assert outputs["bad"].error_message == "no text satisfies it"
    assert outputs["good"].finish_reason in ("stop", "length")


def test_logits_are_computed_only_where_the_grammar_bars_the_best_token(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The greedy text is the same where the masks are applied to the logits of every row."""
    read = 0
    logits = engine.runner.logits

    def counted(hidden: Any, places: Any) -> Any:
        nonlocal read
        read += len(places)
        return logits(hidden, places)

    monkeypatch.setattr(engine.runner, "logits", counted)
    requests = [asked(engine, name, StructuredOutputs(regex=r"(?s:.)*"), max_tokens=40) for name in "abc"]
    found = run(engine, requests)
    read_where_barred, read = read, 0
    monkeypatch.setattr(OutputState, "takes_best_if", lambda *_: False)
    wanted = run(engine, requests)
    assert [found[name].token_ids for name in "abc"] == [wanted[name].token_ids for name in "abc"]
    assert read == sum(len(output.token_ids) for output in wanted.values())
    assert 0 < read_where_barred < read
