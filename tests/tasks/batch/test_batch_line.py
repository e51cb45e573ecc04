"""Lines that are no request, as vLLM's batch runner has them too, and parameters that are refused by name."""

import json
from typing import Any

import pytest

from tasks.batch.batch_line import BatchLine, parse_line
from tasks.batch.endpoint import Asked, BadRequestError
from tests.tasks.batch.batch_steps import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, SCORE, Json, request

MODELS = ("the-model", "models/the-model")


def parse(line: Json | str) -> BatchLine:
    return parse_line(7, (line if isinstance(line, str) else json.dumps(line)).encode(), MODELS)


def asked(url: str = CHAT, **body: Any) -> Asked:
    line = parse(request("a", url, **body))
    assert isinstance(line.asked, Asked), line.asked
    return line.asked


def fault(line: Json | str) -> tuple[str, str | None]:
    found = parse(line).asked
    assert isinstance(found, BadRequestError)
    return found.code, found.param


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        ("not JSON", "invalid_json_line", None),
        ("[]", "invalid_json_line", None),
        ('{"custom_id": "a", "custom_id": "b"}', "invalid_json_line", None),
        ({"method": "POST", "url": CHAT, "body": {}}, "missing_required_parameter", "custom_id"),
        (request("") | {"custom_id": 3}, "missing_required_parameter", "custom_id"),
        (request("a") | {"custom_id": ""}, "missing_required_parameter", "custom_id"),
        (request("a") | {"custom_id": "\ud800"}, "missing_required_parameter", "custom_id"),
        (request("a") | {"method": "GET"}, "invalid_method", "method"),
        (request("a") | {"url": "/v1/bad"}, "invalid_url", "url"),
        (request("a") | {"url": None}, "invalid_url", "url"),
        (request("a") | {"body": "text"}, "missing_required_parameter", "body"),
        (request("a") | {"more": 1}, "unknown_parameter", "more"),
        (request("a", model="other"), "model_not_found", "model"),
        (request("a", temprature=1), "unknown_parameter", "temprature"),
        (request("a", stream=True), "unsupported_value", "stream"),
        (request("a", messages=None), "missing_required_parameter", "messages"),
        (request("a", top_logprobs=2), "invalid_value", "top_logprobs"),
        (request("a", logprobs=True, top_logprobs=21), "invalid_value", "top_logprobs"),
        (request("a", logprobs=2), "invalid_type", "logprobs"),
        (request("a", max_completion_tokens=0), "invalid_value", "max_completion_tokens"),
        (request("a", tool_choice="required"), "invalid_value", "tool_choice"),
        (request("a", response_format={"type": "xml"}), "invalid_value", "response_format.type"),
        (
            request("a", response_format={"type": "json_schema", "json_schema": {"name": "n"}}),
            *("missing_required_parameter", "response_format.json_schema.schema"),
        ),
        (
            request("a", guided_regex="a", response_format={"type": "json_object"}),
            *("invalid_value", "guided_regex"),
        ),
        (request("a", COMPLETIONS), "missing_required_parameter", "prompt"),
        (request("a", COMPLETIONS, prompt=[]), "invalid_type", "prompt"),
        (request("a", COMPLETIONS, prompt=[1, "a"]), "invalid_type", "prompt"),
        (request("a", COMPLETIONS, prompt="a", suffix="b"), "unsupported_value", "suffix"),
        (request("a", EMBEDDINGS, input="a", encoding_format="hex"), "invalid_value", "encoding_format"),
        (request("a", EMBEDDINGS, input="a", dimensions=0), "invalid_value", "dimensions"),
        (request("a", SCORE, text_1="q"), "missing_required_parameter", "text_2"),
        (request("a", SCORE, text_1=["q", "r"], text_2=["a"]), "invalid_value", "text_2"),
        (request("a", RERANK, query="q", documents=[1]), "invalid_type", "documents"),
    ],
)
def test_faults_of_a_line(line: Json | str, code: str, param: str | None) -> None:
    assert fault(line) == (code, param)


def test_a_name_that_is_nearly_right() -> None:
    found = parse(request("a", temprature=1)).asked
    assert str(found) == "unknown parameter 'temprature'; did you mean temperature?"
    assert str(parse(request("a", qqq=1)).asked) == "unknown parameter 'qqq'"


def test_a_line_that_is_a_request() -> None:
    line = parse(request("a", model="the-model", metadata={"k": "v"}, user="u", stream=False, seed=None))
    assert (line.number, line.custom_id, line.url, line.model) == (7, "a", CHAT, "the-model")
    assert isinstance(line.asked, Asked)
    [row] = line.asked.rows
    assert row.prompt == {"messages": [{"role": "user", "content": "Hi"}], "tool_choice": "none"}
    assert row.task == {"type": "generate"}
    assert row.sampling == {"temperature": 1.0, "max_tokens": 4}


def test_parameters_of_a_chat_become_those_of_sampling() -> None:
    [row] = asked(
        max_tokens=9, max_completion_tokens=5, logprobs=True, top_logprobs=3, stop=["a"], top_k=4, logit_bias={"5": -1}
    ).rows
    assert row.sampling == {
        "temperature": 1.0,
        "max_tokens": 5,
        "logprobs": 3,
        "stop": ["a"],
        "top_k": 4,
        "logit_bias": {"5": -1},
    }
    assert asked(logprobs=True).rows[0].sampling["logprobs"] == 0
    assert asked(max_tokens=None).rows[0].sampling["max_tokens"] > 10**9


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": 1}}}}, {"json": {"a": 1}}),
        ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
    ],
)
def test_structures(given: Json, wanted: Json | None) -> None:
    assert asked(**given).rows[0].sampling.get("structured_outputs") == wanted
    assert asked(COMPLETIONS, prompt="a", **given).rows[0].sampling.get("structured_outputs") == wanted


def test_a_call_that_is_wanted_is_a_structure() -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "integer"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    named = {"type": "function", "function": {"name": "f"}}
    assert asked(tools=tools, tool_choice=named).rows[0].sampling["structured_outputs"] == {"json": parameters}
    schema = asked(tools=tools, tool_choice="required").rows[0].sampling["structured_outputs"]["json"]
    assert schema["items"]["anyOf"][0]["properties"] == {"name": {"const": "f"}, "arguments": parameters}
    assert "structured_outputs" not in asked(tools=tools).rows[0].sampling
    assert "tool_choice" not in asked(tools=tools).rows[0].prompt
    assert fault(request("a", tools=tools, tool_choice={"type": "function", "function": {"name": "g"}})) == (
        "invalid_value",
        "tool_choice",
    )


def test_completions_and_embeddings_have_a_row_for_each_text() -> None:
    rows = asked(COMPLETIONS, prompt=["a", [1, 2]], echo=True, logprobs=2, max_tokens=3).rows
    assert [row.prompt["prompt"] for row in rows] == ["a", [1, 2]]
    assert rows[0].sampling == {"temperature": 1.0, "max_tokens": 3, "logprobs": 2, "prompt_logprobs": 2}
    [scored] = asked(COMPLETIONS, prompt="a", echo=True, logprobs=1, max_tokens=0).rows
    assert (scored.task, scored.sampling) == ({"type": "perplexity"}, {"prompt_logprobs": 1})
    rows = asked(EMBEDDINGS, input=["a", "b"], dimensions=8).rows
    assert [(row.prompt, row.task) for row in rows] == [
        ({"input": text}, {"type": "embed", "dimensions": 8}) for text in ("a", "b")
    ]
    assert asked(EMBEDDINGS, input=[1, 2]).rows[0].prompt == {"input": [1, 2]}


def test_scores_have_their_texts_as_items() -> None:
    [row] = asked(SCORE, text_1="q", text_2=["a", "b"]).rows
    assert (row.prompt, row.task) == ({"prompt": "q"}, {"type": "score", "items": ["a", "b"]})
    rows = asked(SCORE, text_1=["q", "r"], text_2=["a", "b"]).rows
    assert [(row.prompt["prompt"], row.task["items"]) for row in rows] == [("q", ["a"]), ("r", ["b"])]
    [row] = asked(RERANK, query="q", documents=["a", {"text": "b"}], top_n=1).rows
    assert row.task == {"type": "score", "items": ["a", "b"]}
