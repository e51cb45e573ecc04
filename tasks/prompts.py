"""Rows to prompt texts: a column, a Jinja template over columns, or chat messages."""

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import UserError
from tasks.job import Prompt
from tasks.row_error import BAD_ENCODING, BAD_MESSAGES, EMPTY_PROMPT, TEMPLATE_ERROR, RowError, described
from tasks.source_rows import SourceBatch, is_utf8

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RenderedPrompt = str | RowError
Message = dict[str, str]


class PromptRenderer:
    """Renders a batch at a time. `columns` are the source columns that it reads.

    Raises UserError for a template that is not one, or a chat prompt for a model without a chat template.
    """

    def __init__(self, prompt: Prompt, tokenizer: "PreTrainedTokenizerFast | None" = None) -> None:
        self.prompt = prompt
        self._tokenizer = tokenizer
        self._environment = _environment()
        self._template: Template | None = None
        if prompt.template is not None:
            self.columns = _template_columns(self._environment, prompt.template)
            self._template = self._environment.from_string(prompt.template)
        else:
            self.columns = (prompt.column or prompt.messages or "",)
        if tokenizer is not None and prompt.uses_chat and not tokenizer.chat_template:
            raise UserError("prompt: this model has no chat template; give the whole text with column or template")

    def render(self, batch: SourceBatch) -> list[RenderedPrompt]:
        """A text or an error for each row; a text is UTF-8 without NUL and holds more than white space."""
        values = [batch.values(column) for column in self.columns]
        return [self._render_row(row) for row in zip(*values, strict=True)]

    def _render_row(self, values: tuple[object, ...]) -> RenderedPrompt:
        if self.prompt.messages is not None:
            messages = parse_messages(values[0])
            return messages if isinstance(messages, RowError) else self._apply_chat(messages)
        if self._template is not None:
            text = self._fill(self._template, dict(zip(self.columns, values, strict=True)))
        else:
            text = _check_text(values[0])
        if isinstance(text, RowError) or not self.prompt.chat:
            return text
        return self._apply_chat([{"role": "user", "content": text}])

    def _fill(self, template: Template, values: dict[str, object]) -> RenderedPrompt:
        try:
            return _check_text(template.render(values))
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as problem:
            return described(TEMPLATE_ERROR, "the template fails on this row", problem)

    def _apply_chat(self, messages: list[Message]) -> RenderedPrompt:
        assert self._tokenizer is not None
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except (TemplateError, TypeError, ValueError) as problem:
            return described(BAD_MESSAGES, "the model's chat template refuses the messages", problem)


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
    if error is None and not any(message["content"].strip() for message in good):
        error = RowError(EMPTY_PROMPT, "every message is empty")
    return error or good


def _message(entry: object) -> Message | RowError:
    role, content = (entry.get("role"), entry.get("content")) if isinstance(entry, dict) else (None, None)
    if not isinstance(role, str) or not isinstance(content, str) or not role:
        return RowError(BAD_MESSAGES, "a message needs a role and a content, both text")
    return _encoding_error(role + content) or {"role": role, "content": content}


def _check_text(value: object) -> RenderedPrompt:
    if value is None:
        return RowError(EMPTY_PROMPT, "the prompt is NULL")
    text = value if isinstance(value, str) else str(value)
    if not text.strip():
        return RowError(EMPTY_PROMPT, "the prompt is empty" if not text else "the prompt is white space alone")
    return _encoding_error(text) or text


def _encoding_error(text: str) -> RowError | None:
    if "\x00" in text:
        return RowError(BAD_ENCODING, "the prompt holds a NUL character")
    return None if is_utf8(text) else RowError(BAD_ENCODING, "the prompt is not valid UTF-8")


def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, finalize=_not_null)


def _not_null(value: Any) -> Any:
    """A NULL in a prompt would read `None`, which nobody means."""
    if value is None:
        raise ValueError("a column that it prints is NULL; write {{ column or '' }} where that is meant")
    return value


def _template_columns(environment: ImmutableSandboxedEnvironment, template: str) -> tuple[str, ...]:
    """The columns that a template names."""
    try:
        tree = environment.parse(template)
        environment.from_string(template)
    except TemplateSyntaxError as problem:
        raise UserError(f"prompt.template: line {problem.lineno}: {problem.message}") from None
    if any(True for _ in _referenced(tree)):
        raise UserError("prompt.template: include, import and extends are not there; write the template whole")
    columns = tuple(sorted(meta.find_undeclared_variables(tree) - set(environment.globals)))
    if not columns:
        raise UserError("prompt.template: names no column, so that all prompts would be equal")
    return columns


_referenced: Callable[[Any], Iterable[str | None]] = meta.find_referenced_templates
