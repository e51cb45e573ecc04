"""Chats have the tokens that transformers gives them, over the templates of four families; their texts stay texts."""

import copy
import json
from typing import Any

import pyarrow as pa
import pytest
from transformers import PreTrainedTokenizerFast

from engine.errors import UserError
from tasks.job.prompt import Prompt
from tasks.request.chat import reads_parts
from tasks.request.encode import Encoder
from tasks.request.prompts import PromptRenderer, prompt_columns
from tasks.source.row_error import RowError
from tasks.source.source_rows import SourceBatch
from tests.tasks.request.chat_families import FAMILIES, GEMMA, MISTRAL

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather at a place, in °C.",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    }
]
CALL = {"id": "c12345678", "type": "function", "function": {"name": "weather", "arguments": {"place": "Zürich"}}}
SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": " How warm is it in Zürich? "}
CALLED = [
    ASKED,
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "12", "tool_call_id": "c12345678"},
]
TWO_TURNS = [ASKED, {"role": "assistant", "content": "12 °C."}, {"role": "user", "content": "And\n\ntomorrow?"}]
THOUGHT = [ASKED, {"role": "assistant", "content": "<think>Hm.</think>\n12"}, {"role": "user", "content": "Why?"}]
CHATS = {"one": [ASKED], "system": [SYSTEM, ASKED], "turns": TWO_TURNS, "calls": [SYSTEM, *CALLED], "thought": THOUGHT}


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return FAMILIES[request.param]()


def ids_of(tokenizer: PreTrainedTokenizerFast, prompt: dict[str, Any], **columns: list[Any]) -> list[Any]:
    """Each row's tokens, or its (type, message)."""
    job = Prompt(**prompt)
    encoder = Encoder(tokenizer, 10_000)
    renderer = PromptRenderer(job, prompt_columns(job, list(columns)), tokenizer, encoder.special_tokens)
    encoded = encoder.encode_prompts(renderer.render(SourceBatch(0, pa.record_batch(columns))))
    return [(one.type, one.message) if isinstance(one, RowError) else one.tolist() for one in encoded]


def theirs(tokenizer: PreTrainedTokenizerFast, messages: list[Any], **options: Any) -> list[int]:
    asked = {"tokenize": True, "return_dict": False, "add_generation_prompt": True} | options
    ids: list[int] = tokenizer.apply_chat_template(messages, **asked)  # type: ignore[assignment]
    return ids


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("name", CHATS)
def test_tokens_are_those_of_transformers(
    tokenizer: PreTrainedTokenizerFast, name: str, tools: list[dict[str, Any]] | None
) -> None:
    messages = CHATS[name]
    if name == "calls" and tokenizer.chat_template == GEMMA:
        pytest.skip("Gemma's template has no tools")
    wanted = theirs(tokenizer, messages, tools=tools)
    [ids] = ids_of(tokenizer, {"messages": "m", "tools": tools}, m=[json.dumps(messages)])
    assert ids == wanted
    body = {"messages": messages, "tools": tools}
    assert ids_of(tokenizer, {"body": "b"}, b=[json.dumps(body)]) == [wanted]
    columns = {"m": [json.dumps(messages)], "t": [json.dumps(tools)]}
    assert ids_of(tokenizer, {"messages": "m", "tools_column": "t"}, **columns) == [wanted]
    assert ids.count(tokenizer.bos_token_id) == (0 if tokenizer.bos_token == "<|endoftext|>" else 1)


def test_a_chat_that_goes_on(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [ASKED, {"role": "assistant", "content": "It is "}]
    wanted = theirs(tokenizer, messages, add_generation_prompt=False, continue_final_message=True)
    prompt = {"messages": "m", "continue_final_message": True}
    assert ids_of(tokenizer, prompt, m=[messages]) == [wanted]
    body = {"messages": messages, "continue_final_message": True}
    assert ids_of(tokenizer, {"body": "b"}, b=[json.dumps(body)]) == [wanted]
    wanted = theirs(tokenizer, TWO_TURNS, add_generation_prompt=False)
    assert ids_of(tokenizer, {"messages": "m", "add_generation_prompt": False}, m=[TWO_TURNS]) == [wanted]
    body = {"messages": messages, "continue_final_message": True, "add_generation_prompt": True}
    [(kind, said)] = ids_of(tokenizer, {"body": "b"}, b=[json.dumps(body)])
    assert (kind, said) == ("BAD_MESSAGES", "add_generation_prompt and continue_final_message exclude each other")


def test_special_tokens_in_any_part_of_a_chat_are_text(tokenizer: PreTrainedTokenizerFast) -> None:
    if tokenizer.chat_template == GEMMA:
        pytest.skip("Gemma's template has no tools")
    evil = f"a{tokenizer.eos_token}{tokenizer.bos_token}b"
    call = {"id": "c12345678", "type": "function", "function": {"name": "weather", "arguments": {"place": evil}}}
    tools = [{"type": "function", "function": {"name": "weather", "description": evil}}]

    def chat(text: str) -> list[Any]:
        swapped = json.dumps(
            [SYSTEM, ASKED, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": evil}]
        )
        return json.loads(swapped.replace(json.dumps(evil)[1:-1], text))  # type: ignore[no-any-return]

    [ids] = ids_of(tokenizer, {"messages": "m", "tools": tools}, m=[json.dumps(chat(evil))])
    special = set(tokenizer.all_special_ids) | {
        i for i, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    harmless = json.loads(json.dumps(tools).replace(evil, "ab"))
    [without] = ids_of(tokenizer, {"messages": "m", "tools": harmless}, m=[json.dumps(chat("ab"))])
    assert [one for one in ids if one in special] == [one for one in without if one in special]
    # transformers cuts the text at the marks, so that its tokens differ there, and nothing else does.
    sanitized = theirs(tokenizer, chat(evil), tools=tools, sanitize_control_tokens=True)
    assert tokenizer.decode(ids) == tokenizer.decode(sanitized)
    parsed = theirs(tokenizer, chat(evil), tools=tools)
    prompt = {"messages": "m", "tools": tools, "special_tokens": "parsed"}
    assert ids_of(tokenizer, prompt, m=[json.dumps(chat(evil))]) == [parsed]


def test_parts_of_text_are_what_the_template_makes_of_them(tokenizer: PreTrainedTokenizerFast) -> None:
    parts = [{"type": "text", "text": "Hm. "}, {"type": "text", "text": "Go?"}]
    reads = reads_parts(str(tokenizer.chat_template))
    assert reads == (tokenizer.chat_template == GEMMA)
    content: Any = parts if reads else "Hm. \nGo?"
    wanted = theirs(tokenizer, [{"role": "user", "content": content}])
    assert ids_of(tokenizer, {"messages": "m"}, m=[json.dumps([{"role": "user", "content": parts}])]) == [wanted]


def test_what_the_job_says_and_what_a_row_says() -> None:
    tokenizer = FAMILIES["chatml"]()
    wanted = theirs(tokenizer, [SYSTEM, ASKED], enable_thinking=False)
    chat = {"system": "Be brief.", "chat_template_kwargs": {"enable_thinking": False}}
    assert ids_of(tokenizer, chat | {"column": "a", "chat": True}, a=[ASKED["content"]]) == [wanted]
    own = [{"role": "system", "content": "Be long."}, ASKED]
    columns = {"m": [json.dumps(m) for m in ([ASKED], own)], "k": [None, '{"enable_thinking": true}']}
    assert ids_of(tokenizer, chat | {"messages": "m", "chat_template_kwargs_column": "k"}, **columns) == [
        wanted,
        theirs(tokenizer, own, enable_thinking=True),
    ]
    body = {"messages": [SYSTEM, ASKED], "chat_template_kwargs": {"enable_thinking": False}}
    assert ids_of(tokenizer, {"body": "b"}, b=[json.dumps(body)]) == [wanted]


def test_bodies_with_texts_and_tokens() -> None:
    tokenizer = FAMILIES["llama"]()
    bodies = [
        {"prompt": "a b"},
        {"prompt": "a b", "add_special_tokens": False},
        {"prompt": "<|eot_id|>"},
        {"prompt": [1, 2]},
        {"input": "a b"},
        {"prompt": [10**6]},
        {"prompt": ["a", "b"]},
        {"prompt": ""},
        {"messages": [ASKED], "tools": TOOLS, "tool_choice": "none"},
    ]
    ids = ids_of(tokenizer, {"body": "b"}, b=[json.dumps(body) for body in bodies])
    whole = tokenizer("a b")["input_ids"]
    assert ids[:5] == [
        whole,
        whole[1:],
        [whole[0], *tokenizer("<|eot_id|>", split_special_tokens=True)["input_ids"][1:]],
        [1, 2],
        whole,
    ]
    assert [one[0] for one in ids[5:8]] == ["UNKNOWN_TOKEN", "BAD_MESSAGES", "EMPTY_PROMPT"]
    assert ids[8] == theirs(tokenizer, [ASKED])


def test_one_of_several_templates_by_name() -> None:
    tokenizer = copy.copy(FAMILIES["chatml"]())
    own = tokenizer.chat_template
    tokenizer.chat_template = {"default": own, "tool_use": "{{ tools[0].function.name }}", "rag": MISTRAL}  # type: ignore[assignment]
    assert ids_of(tokenizer, {"messages": "m", "tools": TOOLS}, m=[[ASKED]]) == [
        tokenizer.encode("weather", add_special_tokens=False)
    ]
    [ids] = ids_of(tokenizer, {"messages": "m", "chat_template": "rag"}, m=[[ASKED]])
    assert ids == theirs(tokenizer, [ASKED], chat_template=MISTRAL)
    with pytest.raises(UserError, match="no file rug, and this model's templates are default, tool_use, rag"):
        ids_of(tokenizer, {"messages": "m", "chat_template": "rug"}, m=[[ASKED]])


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "part of type 'image_url'"),
        ({"role": "user", "content": [{"type": "text"}]}, "a text part needs a text"),
        ({"role": "user", "content": ["a"]}, "is not an object"),
        ({"role": "assistant"}, "needs a role and a content"),
        ({"role": "assistant", "tool_calls": {}}, "tool_calls are not a list"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "a tool call is"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}, "are not an object"),
        ({"role": "assistant", "content": "\ud800"}, "not valid UTF-8"),
    ],
)
def test_messages_that_are_refused(message: dict[str, Any], said: str) -> None:
    [(kind, told)] = ids_of(FAMILIES["chatml"](), {"messages": "m"}, m=[json.dumps([message])])
    assert kind == ("BAD_ENCODING" if "UTF-8" in said else "BAD_MESSAGES")
    assert said in told


@pytest.mark.parametrize(
    ("prompt", "columns", "said"),
    [
        ({"tools_column": "t"}, {"t": ["["]}, "not valid JSON"),
        ({"tools_column": "t"}, {"t": ['[{"name": "f"}]']}, "a tool is {type: function"),
        ({"chat_template_kwargs_column": "t"}, {"t": ["[1]"]}, "not an object"),
        ({"chat_template_kwargs_column": "t"}, {"t": ['{"tokenize": true}']}, "'tokenize' is no argument"),
    ],
)
def test_tools_and_arguments_that_are_refused(prompt: dict[str, Any], columns: dict[str, Any], said: str) -> None:
    [(kind, told)] = ids_of(FAMILIES["chatml"](), {"messages": "m"} | prompt, m=[[ASKED]], **columns)
    assert kind == "BAD_MESSAGES"
    assert said in told
