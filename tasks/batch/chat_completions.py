"""`/v1/chat/completions`."""

from collections.abc import Mapping
from typing import Any

from tasks.batch.completion_outputs import outputs_of
from tasks.batch.endpoint import (
    Answered,
    Asked,
    BadRequestError,
    Endpoint,
    Json,
    ResponseHead,
    RowAsk,
    TokenTexts,
    usage,
)
from tasks.batch.parameters import PROMPT, SAMPLING, check_names, flag, given_of, required, sampling_of, whole_number
from tasks.batch.structure import STRUCTURE, structure_of
from tasks.batch.token_logprobs import chat_logprobs
from tasks.batch.tools import call_schema, read_calls, tool_choice_of, tool_names

_OWN = ("model", "max_completion_tokens", "logprobs", "top_logprobs", "tool_choice", "parallel_tool_calls")
# Where a request says nothing, an answer may fill the context.
_NO_LIMIT = 2**31 - 1


class ChatCompletions(Endpoint):
    url = "/v1/chat/completions"
    id_prefix = "chatcmpl"

    def read(self, body: Json) -> Asked:
        check_names(body, {*_OWN, *SAMPLING, *PROMPT, *STRUCTURE})
        required(body, "messages")
        choice = tool_choice_of(body)
        structure = structure_of(body)
        schema = call_schema(choice, body.get("tools"))
        if schema is not None:
            if structure is not None:
                raise BadRequestError("invalid_value", "tool_choice and a structure exclude each other", "tool_choice")
            structure = "tools", {"json": schema}
        sampling: Json = {"max_tokens": _NO_LIMIT} | sampling_of(body)
        most = whole_number(body, "max_completion_tokens", 1)
        if most is not None:
            sampling["max_tokens"] = most
        if structure is not None:
            sampling["structured_outputs"] = structure[1]
        alternatives = _alternatives(body)
        if alternatives is not None:
            sampling["logprobs"] = alternatives
        prompt = given_of(body, PROMPT) | ({"tool_choice": "none"} if choice == "none" else {})
        one_call = not flag(body, "parallel_tool_calls", True)
        reply = {"tool_choice": choice, "tools": tool_names(body.get("tools")), "one_call": one_call}
        named = {"structure": structure[0]} if structure is not None else {}
        return Asked((RowAsk(prompt, {"type": "generate"}, sampling),), reply | named)

    def response(self, answered: Answered) -> Json:
        head = answered.head
        (row,) = answered.rows
        return {
            "id": head.id,
            "object": "chat.completion",
            "created": head.created,
            "model": head.model,
            "choices": [
                _choice(number, one, answered.reply, head, answered.tokens)
                for number, one in enumerate(outputs_of(row))
            ],
            "usage": usage(answered.rows),
            "system_fingerprint": head.fingerprint,
        }


def _alternatives(body: Json) -> int | None:
    """How many of them beside each token; None where no log-probabilities are asked for."""
    top = whole_number(body, "top_logprobs", 0, 20)
    if flag(body, "logprobs"):
        return top or 0
    if top:
        raise BadRequestError("invalid_value", "top_logprobs needs logprobs: true", "top_logprobs")
    return None


def _choice(number: int, output: Json, reply: Mapping[str, Any], head: ResponseHead, tokens: TokenTexts) -> Json:
    message: Json = {"role": "assistant", "content": output["text"], "refusal": None}
    if output["reasoning"] is not None:
        message["reasoning_content"] = output["reasoning"]
    finish_reason = output["finish_reason"]
    if reply["tool_choice"] != "none":
        call_id = f"{head.id}-{number}"
        content, calls = read_calls(output["text"], reply["tool_choice"], reply["tools"], call_id)
        if calls:
            message |= {"content": content, "tool_calls": calls[:1] if reply["one_call"] else calls}
            finish_reason = "tool_calls" if finish_reason == "stop" else finish_reason
    return {
        "index": number,
        "message": message,
        "logprobs": chat_logprobs(output["logprobs"], tokens),
        "finish_reason": finish_reason,
    }
