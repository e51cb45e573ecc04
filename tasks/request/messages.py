"""Chat messages and tools as rows have them: values or JSON, in the form of OpenAI's API."""

import json
from dataclasses import dataclass, field

from tasks.job.prompt import TemplateArguments, check_template_arguments, check_tools
from tasks.request.special_tokens import each_text
from tasks.source.cells import is_utf8
from tasks.source.row_error import BAD_ENCODING, BAD_MESSAGES, EMPTY_PROMPT, RowError

Message = dict[str, object]
Tool = dict[str, object]

_REASONING = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True, slots=True)
class Chat:
    """What a chat template makes a prompt of. `arguments` are those that it gets by name."""

    messages: list[Message]
    tools: list[Tool] | None = None
    arguments: TemplateArguments = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False


def parse_messages(value: object) -> list[Message] | RowError:
    """A column's value as chat messages: a list of {role, content}, or its JSON text."""
    if isinstance(value, str) and value.strip():
        if not is_utf8(value):
            return RowError(BAD_ENCODING, "the messages are not valid UTF-8")
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return RowError(BAD_MESSAGES, "the messages are not valid JSON")
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return RowError(EMPTY_PROMPT, "no messages")
    if not isinstance(value, list):
        return RowError(BAD_MESSAGES, "the messages are not a list of {role, content}")
    messages = [_message(entry) for entry in value]
    error = next((message for message in messages if isinstance(message, RowError)), None)
    good = [message for message in messages if not isinstance(message, RowError)]
    if error is None and not any(map(_says_something, good)):
        error = RowError(EMPTY_PROMPT, "every message is empty")
    return error or good


def parse_tools(value: object) -> list[Tool] | RowError | None:
    """A column's value as tools: a list of {type: function, function: {name}}, or its JSON text; None for NULL."""
    value = _from_json(value)
    if value is None or isinstance(value, RowError):
        return value
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        return RowError(BAD_MESSAGES, "the tools are not a list of {type, function}")
    try:
        check_tools(tuple(value) or None)
    except ValueError as problem:
        return RowError(BAD_MESSAGES, f"the tools: {problem}")
    return encoding_error(value) or value or None


def parse_arguments(value: object) -> TemplateArguments | RowError:
    """A column's value as arguments of a chat template: an object, or its JSON text; empty for NULL."""
    value = _from_json(value)
    if isinstance(value, RowError):
        return value
    if value is not None and not isinstance(value, dict):
        return RowError(BAD_MESSAGES, "the arguments of the chat template are not an object")
    try:
        return encoding_error(value) or check_template_arguments(value or {})
    except ValueError as problem:
        return RowError(BAD_MESSAGES, f"the arguments of the chat template: {problem}")


def encoding_error(value: object) -> RowError | None:
    """What is wrong with any of the texts in a prompt, or in what it is made of."""
    texts: list[str] = []

    def collect(text: str) -> str:
        texts.append(text)
        return text

    each_text(value, collect)
    if any("\x00" in text for text in texts):
        return RowError(BAD_ENCODING, "the prompt holds a NUL character")
    return None if all(map(is_utf8, texts)) else RowError(BAD_ENCODING, "the prompt is not valid UTF-8")


def _from_json(value: object) -> object:
    if isinstance(value, str):
        try:
            return json.loads(value) if value.strip() else None
        except (ValueError, RecursionError):
            return RowError(BAD_MESSAGES, "the tools, or the arguments of the chat template, are not valid JSON")
    return value


def _message(entry: object) -> Message | RowError:
    """A NULL is the same as nothing, as in transformers."""
    given = {name: value for name, value in entry.items() if value is not None} if isinstance(entry, dict) else {}
    role, content = given.get("role"), given.get("content")
    is_text = isinstance(content, str) or (content is None and ("tool_calls" in given or _reasoning_of(given)))
    if not isinstance(role, str) or not role or not (is_text or isinstance(content, list)):
        return RowError(BAD_MESSAGES, "a message needs a role and a content, both text")
    if isinstance(content, list):
        parts = _parts(content)
        if isinstance(parts, RowError):
            return parts
        given["content"] = parts
    if "tool_calls" in given:
        calls = _tool_calls(given["tool_calls"])
        if isinstance(calls, RowError):
            return calls
        given["tool_calls"] = calls
    return encoding_error(given) or given


def _parts(content: list[object]) -> list[object] | RowError:
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if kind != "text":
            said = f"a message has a part of type {kind!r:.40}" if kind else "a part of a message is not an object"
            return RowError(BAD_MESSAGES, f"{said}; only text parts are read")
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            return RowError(BAD_MESSAGES, "a text part needs a text")
    return [{"type": "text", "text": part["text"]} for part in content if isinstance(part, dict)]


def _tool_calls(calls: object) -> list[object] | RowError:
    """With arguments as objects: OpenAI's API has them as JSON texts, which templates do not expect."""
    if not isinstance(calls, list):
        return RowError(BAD_MESSAGES, "tool_calls are not a list")
    read: list[object] = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return RowError(BAD_MESSAGES, "a tool call is {type: function, function: {name, arguments}}")
        arguments = _from_json(function.get("arguments"))
        if not isinstance(arguments, dict | None):
            return RowError(BAD_MESSAGES, "the arguments of a tool call are not an object")
        there = {name: value for name, value in call.items() if value is not None}
        read.append(there | {"function": function | {"arguments": arguments or {}}})
    return read


def _says_something(message: Message) -> bool:
    content = message.get("content")
    texts = [content] if isinstance(content, str) else [part["text"] for part in content] if content else []  # type: ignore[attr-defined]
    return any(text.strip() for text in texts) or bool(message.get("tool_calls")) or _reasoning_of(message)


def _reasoning_of(message: Message) -> bool:
    return any(isinstance(message.get(name), str) for name in _REASONING)
