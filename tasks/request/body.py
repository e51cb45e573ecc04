"""The prompt of an OpenAI request body: a chat, a text or tokens."""

import json
from typing import cast

import numpy as np
from pydantic import JsonValue

from engine.request import TokenIds
from tasks.job.prompt import TemplateArguments
from tasks.request.messages import Chat, encoding_error, parse_arguments, parse_messages, parse_tools
from tasks.source.row_error import BAD_MESSAGES, EMPTY_PROMPT, RowError

# Fields of a body that templates get by their names.
_ARGUMENTS = ("documents", "reasoning_effort")
_FLAGS = ("add_generation_prompt", "continue_final_message", "add_special_tokens")


def parse_body(value: object) -> Chat | str | TokenIds | RowError:
    """A column's value as the prompt of a chat (`messages`), a completion (`prompt`) or an embedding (`input`)."""
    body = _object(value)
    if isinstance(body, RowError):
        return body
    bad = next((name for name in _FLAGS if not isinstance(body.get(name, False), bool)), None)
    if bad is not None:
        return RowError(BAD_MESSAGES, f"{bad} is true or false")
    if "messages" in body:
        return _chat(body)
    prompt = body.get("prompt", body.get("input"))
    if isinstance(prompt, str):
        return encoding_error(prompt) or (prompt if prompt else RowError(EMPTY_PROMPT, "the prompt is empty"))
    if isinstance(prompt, list) and all(type(token) is int and 0 <= token < 2**31 for token in prompt):
        return np.array(prompt, np.int32) if prompt else RowError(EMPTY_PROMPT, "the prompt has no token")
    return RowError(BAD_MESSAGES, "the body has neither messages nor one prompt, which is a text or a list of tokens")


def adds_special_tokens(value: object) -> bool:
    """Whether the tokenizer adds special tokens to a body's text, as it does unless the body says otherwise."""
    body = _object(value)
    return not isinstance(body, dict) or body.get("add_special_tokens") is not False


def _object(value: object) -> dict[str, object] | RowError:
    if value is None:
        return RowError(BAD_MESSAGES, "there is no request body")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    return value if isinstance(value, dict) else RowError(BAD_MESSAGES, "the body is not a JSON object")


def _chat(body: dict[str, object]) -> Chat | RowError:
    messages = parse_messages(body["messages"])
    tools = None if body.get("tool_choice") == "none" else parse_tools(body.get("tools"))
    given = parse_arguments(body.get("chat_template_kwargs"))
    for part in (messages, tools, given):
        if isinstance(part, RowError):
            return part
    assert not isinstance(messages, RowError | None), messages
    assert not isinstance(tools, RowError), tools
    assert isinstance(given, dict), given
    named: TemplateArguments = {name: cast(JsonValue, body[name]) for name in _ARGUMENTS if body.get(name) is not None}
    continues = body.get("continue_final_message") is True
    begins = body.get("add_generation_prompt", not continues) is True
    if continues and begins:
        return RowError(BAD_MESSAGES, "add_generation_prompt and continue_final_message exclude each other")
    return Chat(messages, tools, named | given, begins, continues)
