"""Tools of a chat: which a request allows or wants, and the calls in a text, in the forms that models write them."""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from tasks.batch.endpoint import BadRequestError, Json

# Qwen, Hermes and others; Mistral; Llama writes an object alone.
_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_MISTRAL = "[TOOL_CALLS]"


def tool_choice_of(body: Json) -> str | Json:
    """`none`, `auto`, `required`, or the function that has to be called. Raises BadRequestError for anything else."""
    tools = body.get("tools")
    choice = body.get("tool_choice", "auto" if tools else "none")
    if choice in ("none", "auto"):
        return str(choice)
    if not tools:
        raise BadRequestError("invalid_value", "tool_choice wants a call, and there are no tools", "tool_choice")
    if choice == "required":
        return "required"
    name = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    named = [function for function in _functions(tools) if function.get("name") == name]
    if name is None or not named:
        said = "tool_choice is none, auto, required, or {type: function, function: {name}} of one of the tools"
        raise BadRequestError("invalid_value", said, "tool_choice")
    return named[0]


def call_schema(choice: str | Json, tools: object) -> Json | None:
    """The schema of the text where a call is wanted: a named function's arguments, or any call in a list."""
    if isinstance(choice, dict):
        return _parameters(choice)
    if choice != "required":
        return None
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": function.get("name")}, "arguments": _parameters(function)},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in _functions(tools)
    ]
    return {"type": "array", "minItems": 1, "maxItems": 1, "items": {"anyOf": calls}}


def tool_names(tools: object) -> list[str]:
    return [str(function.get("name")) for function in _functions(tools)]


def read_calls(
    text: str, choice: str | Mapping[str, Any], names: Collection[str], call_id: str
) -> tuple[str | None, list[Json]]:
    """The text beside the calls, None where nothing is left, and the calls, of tools with these `names`.

    What is no call stays text.
    """
    if not isinstance(choice, str):
        return None, [_call(str(choice["name"]), text, f"{call_id}-0")]
    content, found = _find(text)
    if any(name not in names for name, _ in found):
        return text, []
    calls = [
        _call(name, arguments if isinstance(arguments, str) else json.dumps(arguments), f"{call_id}-{number}")
        for number, (name, arguments) in enumerate(found)
    ]
    return (content or None if calls else text), calls


def _find(text: str) -> tuple[str, list[tuple[str, object]]]:
    if "<tool_call>" in text:
        calls = [list(_parsed(one)) for one in _TAGGED.findall(text)]
        if all(calls):
            return _TAGGED.sub("", text).strip(), [call for one in calls for call in one]
        return text, []
    before, mark, rest = text.partition(_MISTRAL)
    if mark and (calls_there := list(_parsed(rest))):
        return before.strip(), calls_there
    return ("", found) if (found := list(_parsed(text))) else (text, [])


def _parsed(text: str) -> Iterator[tuple[str, object]]:
    """Calls in JSON, one or a list; none where it is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    calls = value if isinstance(value, list) else [value]
    found = [
        (call.get("name"), call.get("arguments", call.get("parameters"))) if isinstance(call, dict) else (None, None)
        for call in calls
    ]
    if all(isinstance(name, str) and isinstance(arguments, dict | str) for name, arguments in found):
        yield from ((str(name), arguments) for name, arguments in found)


def _call(name: str, arguments: str, call_id: str) -> Json:
    return {"id": f"call-{call_id}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _functions(tools: object) -> Sequence[Json]:
    there = tools if isinstance(tools, list) else []
    return [tool["function"] for tool in there if isinstance(tool, dict) and isinstance(tool.get("function"), dict)]


def _parameters(function: Mapping[str, Any]) -> Json:
    parameters = function.get("parameters")
    return parameters if isinstance(parameters, dict) and parameters else {"type": "object"}
