"""How a job's rows become prompts."""

import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue

from engine.errors import UserError
from tasks.job.job_part import FilePath, Name, Part, exactly_one

NO_CHAT_TEMPLATE = "prompt: this model has no chat template; give one as prompt.chat_template, or the whole text"

_SOURCES = ("column", "template", "messages", "body")
_OF_CHATS = (
    *("chat_template", "chat_template_kwargs", "chat_template_kwargs_column", "system", "tools", "tools_column"),
    *("add_generation_prompt", "continue_final_message"),
)
# What a chat template gets in other ways, or transformers takes for itself.
_OTHERS_NAMES = {
    *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
    *("sanitize_control_tokens", "return_assistant_tokens_mask"),
}

TemplateArguments = dict[str, JsonValue]


def check_template_arguments(arguments: TemplateArguments) -> TemplateArguments:
    """Raises ValueError for a name that is not a template's to get in this way."""
    for name in arguments:
        if name in _OTHERS_NAMES:
            raise ValueError(f"{name!r} is no argument of a template; it has a key of its own, or none")
    return arguments


def check_tools(tools: tuple[dict[str, JsonValue], ...] | None) -> tuple[dict[str, JsonValue], ...] | None:
    """Raises ValueError for what is not a list of functions with a name, as OpenAI's API writes them."""
    if tools is not None and not tools:
        raise ValueError("is empty; name a tool, or leave it out")
    for tool in tools or ():
        function = tool.get("function")
        if (
            tool.get("type") != "function"
            or not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
        ):
            raise ValueError("a tool is {type: function, function: {name, description, parameters}}")
    return tools


def _not_zero(tokens: int | None) -> int | None:
    if tokens == 0:
        raise ValueError("keeps no token; take -1 for as many as fit")
    return tokens


Tools = Annotated[tuple[dict[str, JsonValue], ...] | None, AfterValidator(check_tools)]


class Prompt(Part):
    """How a row becomes a prompt. Exactly one of `column`, `template` (Jinja over columns), `messages` and `body`."""

    column: Name | None = Field(default=None, description="A column that holds the prompts.")
    template: Name | None = Field(
        default=None, description="A Jinja template over columns, sandboxed; an undefined name is an error."
    )
    messages: Name | None = Field(
        default=None,
        description="A column of chat messages, a list or its JSON: {role, content}, with tool_calls where there are.",
    )
    body: Name | None = Field(
        default=None,
        description="A column of OpenAI request bodies in JSON, of which the prompt is taken: messages and tools, or "
        "prompt.",
    )
    special_tokens: Literal["text", "parsed"] = Field(
        default="text",
        description="What a row's own text, or a label, that reads like a special token is: text, or the token. Those "
        "that a template writes are tokens.",
    )
    truncate_prompt_tokens: Annotated[int | None, AfterValidator(_not_zero)] = Field(
        default=None,
        ge=-1,
        description="Keep so many of a prompt's last tokens; -1: as many as fit with the answer. Without it a prompt "
        "that is too long is its row's error.",
    )
    chat: bool = Field(default=False, description="Wrap the text as a user message with the model's chat template.")
    chat_template: FilePath | None = Field(
        default=None, description="In the place of the model's chat template: a file, or the name of one that it has."
    )
    chat_template_kwargs: Annotated[TemplateArguments, AfterValidator(check_template_arguments)] = Field(
        default={}, description="What the chat template gets besides: `{enable_thinking: false}`."
    )
    chat_template_kwargs_column: Name | None = Field(
        default=None, description="A column of more of these, an object or its JSON, which win in their row."
    )
    system: Name | None = Field(default=None, description="A system message for chats that begin with none.")
    tools: Tools = Field(default=None, description="Tools that the model may call, as OpenAI's API writes them.")
    tools_column: Name | None = Field(
        default=None, description="A column of tools, a list or its JSON; NULL: the job's own."
    )
    add_generation_prompt: bool = Field(
        default=True, description="End a chat with the beginning of an answer, unless the final message is continued."
    )
    continue_final_message: bool = Field(default=False, description="Write on where the final message stops.")

    @classmethod
    def faults(cls, given: Mapping[str, Any]) -> Iterator[str]:
        yield from exactly_one(given, _SOURCES)
        if not given.get("chat") and given.get("messages") is None and given.get("body") is None:
            defaults = {key: cls.model_fields[key].default for key in _OF_CHATS}
            said = [key for key in _OF_CHATS if given.get(key, defaults[key]) != defaults[key]]
            yield from (f"{key} belongs to messages, body and chat: true" for key in said)

    @property
    def key(self) -> str:
        return next(key for key in _SOURCES if getattr(self, key) is not None)

    @property
    def columns(self) -> dict[str, str]:
        """The columns that it reads beside the one of `key`, by the job's key."""
        named = {key: getattr(self, key) for key in ("tools_column", "chat_template_kwargs_column")}
        return {f"prompt.{key}": column for key, column in named.items() if column is not None}

    @property
    def parses_special(self) -> bool:
        return self.special_tokens == "parsed"

    @property
    def uses_chat(self) -> bool:
        """Whether every prompt is a chat."""
        return self.chat or self.messages is not None


def read_chat_template(prompt: Prompt, folder: str | None) -> str | None:
    """The text of `chat_template` where it is a file, from the working directory or else from `folder`; else None."""
    if prompt.chat_template is None:
        return None
    name = os.path.expanduser(prompt.chat_template)
    for place in ("", folder or ""):
        path = os.path.join(place, name)
        if os.path.isfile(path):
            try:
                with open(path, encoding="utf-8") as file:
                    return file.read()
            except (OSError, UnicodeDecodeError) as problem:
                raise UserError(f"prompt.chat_template: {path} cannot be read ({problem})") from None
    return None
