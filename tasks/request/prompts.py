"""Rows to prompt texts: a column, a Jinja template over columns, or chat messages."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from engine.errors import UserError
from tasks.job.job import NO_CHAT_TEMPLATE, Prompt
from tasks.request.prompt_text import PromptText, RenderedPrompt
from tasks.request.special_tokens import SpecialTokens, each_text
from tasks.request.template import PromptTemplate
from tasks.source.cells import Cell, CellOrError, is_utf8, text_of
from tasks.source.row_error import BAD_ENCODING, BAD_MESSAGES, EMPTY_PROMPT, TEMPLATE_ERROR, RowError, described
from tasks.source.source_rows import SourceBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TEMPLATE_FAILURES = (
    *(TemplateError, ArithmeticError, AttributeError, LookupError),
    *(RecursionError, TypeError, ValueError),
)


Message = dict[str, str]


def prompt_names(prompt: Prompt) -> tuple[str, ...]:
    """The columns that a prompt may read. Raises UserError for a template that is not one."""
    if prompt.template is not None:
        return PromptTemplate(prompt.template).names
    return (prompt.column or prompt.messages or "",)


def prompt_columns(prompt: Prompt, available: Sequence[str]) -> tuple[str, ...]:
    """Those of them that it reads from a source of the `available` columns."""
    return PromptTemplate(prompt.template).columns(available) if prompt.template is not None else prompt_names(prompt)


class PromptRenderer:
    """Renders a batch at a time out of `columns`, which `prompt_columns` gives.

    Raises UserError for a template that is not one, or a chat prompt for a model without a chat template.
    """

    def __init__(
        self,
        prompt: Prompt,
        columns: Sequence[str],
        tokenizer: "PreTrainedTokenizerFast",
        special_tokens: SpecialTokens,
    ) -> None:
        self.prompt = prompt
        self.columns = tuple(columns)
        self._tokenizer = tokenizer
        self._special = special_tokens
        self._of_row = special_tokens.as_parsed if prompt.parses_special else special_tokens.as_text
        written = str if prompt.parses_special else special_tokens.as_text
        self._template = None if prompt.template is None else PromptTemplate(prompt.template, written)
        check_chat(prompt, tokenizer)

    def render(self, batch: SourceBatch) -> list[RenderedPrompt]:
        """A text or an error for each row; a text is UTF-8 without NUL and holds more than white space."""
        values = [batch.values(column) for column in self.columns]
        return [self._render_row(row) for row in zip(*values, strict=True)]

    def _render_row(self, values: tuple[CellOrError, ...]) -> RenderedPrompt:
        for column, value in zip(self.columns, values, strict=True):
            if isinstance(value, RowError):
                return RowError(value.type, f"column {column!r}: {value.message}")
        good = [value for value in values if not isinstance(value, RowError)]
        if self.prompt.messages is not None:
            messages = parse_messages(good[0])
            return messages if isinstance(messages, RowError) else self._apply_chat(each_text(messages, self._of_row))
        if self._template is not None:
            text = self._fill(self._template, dict(zip(self.columns, good, strict=True)))
        else:
            text = _check_text(good[0])
            text = text if isinstance(text, RowError) else self._of_row(text)
        if isinstance(text, RowError):
            return text
        return self._apply_chat([{"role": "user", "content": text}]) if self.prompt.chat else PromptText(text, True)

    def _fill(self, template: PromptTemplate, values: dict[str, Cell]) -> str | RowError:
        """The template has its own special tokens between marks while it is filled, so that filters see cells as they
        are; then it is the other way round.
        """
        cells = {name: each_text(cell, self._special.as_parsed) for name, cell in values.items()}
        try:
            text = _check_text(template.render(cells))
        except _TEMPLATE_FAILURES as problem:
            return described(TEMPLATE_ERROR, "the template fails on this row", problem)
        return text if isinstance(text, RowError) or self.prompt.parses_special else self._special.exchanged(text)

    def _apply_chat(self, messages: list[Message]) -> RenderedPrompt:
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as problem:
            return described(BAD_MESSAGES, "the model's chat template refuses the messages", problem)
        return PromptText(str(text), False)


def check_chat(prompt: Prompt, tokenizer: "PreTrainedTokenizerFast") -> None:
    if prompt.uses_chat and not tokenizer.chat_template:
        raise UserError(NO_CHAT_TEMPLATE)


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


def _check_text(value: Cell) -> str | RowError:
    if value is None:
        return RowError(EMPTY_PROMPT, "the prompt is NULL")
    text = text_of(value)
    if not text.strip():
        return RowError(EMPTY_PROMPT, "the prompt is empty" if not text else "the prompt is white space alone")
    return _encoding_error(text) or text


def _encoding_error(text: str) -> RowError | None:
    if "\x00" in text:
        return RowError(BAD_ENCODING, "the prompt holds a NUL character")
    return None if is_utf8(text) else RowError(BAD_ENCODING, "the prompt is not valid UTF-8")
