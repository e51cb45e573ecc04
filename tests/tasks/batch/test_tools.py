"""Calls in texts, as families of models write them; what is no call stays text."""

import json

import pytest

from tasks.batch.tools import read_calls

CALL = {"name": "f", "arguments": {"x": 1}}
CALLS = [("f", {"x": 1})]
TAGGED = f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (TAGGED, None, CALLS),
        (f"Let me look.\n{TAGGED}\n{TAGGED}", "Let me look.", CALLS * 2),
        (TAGGED.removesuffix("</tool_call>"), None, CALLS),
        (f"[TOOL_CALLS] [{json.dumps(CALL)}]", None, CALLS),
        (f"Well. [TOOL_CALLS] [{json.dumps(CALL)}]", "Well.", CALLS),
        ('{"name": "f", "parameters": {"x": 1}}', None, CALLS),
        (json.dumps([CALL, CALL]), None, CALLS * 2),
        (json.dumps(CALL | {"arguments": '{"x": 1}'}), None, CALLS),
        ("No call.", "No call.", []),
        ('{"name": "g", "arguments": {}}', '{"name": "g", "arguments": {}}', []),
        ('{"name": "f"}', '{"name": "f"}', []),
        ('{"a": 1}', '{"a": 1}', []),
        ("[]", "[]", []),
        ("7", "7", []),
        ("<tool_call>{</tool_call>", "<tool_call>{</tool_call>", []),
        (f"{TAGGED}<tool_call>{{", f"{TAGGED}<tool_call>{{", []),
        ("[TOOL_CALLS] nothing", "[TOOL_CALLS] nothing", []),
    ],
)
def test_calls_in_a_text(text: str, content: str | None, calls: list[tuple[str, object]]) -> None:
    said, found = read_calls(text, "auto", ["f"], "c")
    assert said == content
    assert [(one["function"]["name"], json.loads(one["function"]["arguments"])) for one in found] == calls
    assert [one["id"] for one in found] == [f"call-c-{i}" for i in range(len(calls))]


def test_a_named_functions_text_is_its_arguments() -> None:
    content, [call] = read_calls('{"x": 1}', {"name": "f", "parameters": {}}, ["f"], "c")
    assert (content, call["function"]) == (None, {"name": "f", "arguments": '{"x": 1}'})
