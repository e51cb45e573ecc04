"""Rows to prompts: a column, a Jinja template over columns, chat messages, or an OpenAI request's body."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from engine.errors import UserError
from tasks.job.prompt import NO_CHAT_TEMPLATE, Prompt
from tasks.request.body import adds_special_tokens, parse_body
from tasks.request.chat import TEMPLATE_FAILURES, ChatRenderer
from tasks.request.messages import Chat, Message, encoding_error, parse_arguments, parse_messages, parse_tools
from tasks.request.prompt_text import BlankPrompt, PromptText, RenderedPrompt
from tasks.request.special_tokens import SpecialTokens, each_text
from tasks.request.template import PromptTemplate
from tasks.request.template_filters import NullPrintedError
from tasks.source.cells import Cell, CellOrError, text_of
from tasks.source.row_error import BAD_ITEMS, BAD_MESSAGES, EMPTY_PROMPT, TEMPLATE_ERROR, RowError, described
from tasks.source.source_rows import SourceBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

T = TypeVar("T")


def prompt_names(prompt: Prompt) -> tuple[str, ...]:
    """The columns that a prompt may read. Raises UserError for a template that is not one."""
    if prompt.template is not None:
        return PromptTemplate(prompt.template).names
    return (getattr(prompt, prompt.key),)


def prompt_columns(prompt: Prompt, available: Sequence[str]) -> tuple[str, ...]:
    """Those of them that it reads from a source of the `available` columns."""
    return PromptTemplate(prompt.template).columns(available) if prompt.template is not None else prompt_names(prompt)


class PromptRenderer:
    """Renders a batch at a time out of `columns`, which `prompt_columns` gives; `chat_template` is the job's own text.

    Raises UserError for a template that is not one, or a chat prompt for a model without a chat template.
    """

    def __init__(
        self,
        prompt: Prompt,
        columns: Sequence[str],
        tokenizer: "PreTrainedTokenizerFast",
        special_tokens: SpecialTokens,
        chat_template: str | None = None,
    ) -> None:
        self.prompt = prompt
        self.columns = tuple(columns)
        self._special = special_tokens
        self._of_row = special_tokens.as_parsed if prompt.parses_special else special_tokens.as_text
        written = str if prompt.parses_special else special_tokens.as_text
        self._template = None if prompt.template is None else PromptTemplate(prompt.template, written)
        template = named_template(prompt, tokenizer) if chat_template is None else chat_template
        has_template = template is not None or bool(tokenizer.chat_template)
        if prompt.uses_chat and not has_template:
            raise UserError(NO_CHAT_TEMPLATE)
        self._chat = ChatRenderer(template, tokenizer) if has_template else None

    def render(self, batch: SourceBatch) -> list[RenderedPrompt]:
        """A prompt or an error for each row; a text is UTF-8 without NUL and holds more than white space."""
        return [self._render_row(row) for row in self._rows(batch)]

    def render_items(
        self, batch: SourceBatch, items: Sequence[tuple[str, ...] | RowError], *, item_first: bool
    ) -> list[list[RenderedPrompt] | RowError]:
        """A prompt for each item of a row: the row's text with the item behind it, or before it. Errors stay."""

        def beside(item: str) -> Callable[[str], str]:
            written = self._own(item)
            return lambda text: written + text if item_first else text + written

        return [
            own if isinstance(own, RowError) else [self._render_row(row, beside(item)) for item in own]
            for row, own in zip(self._rows(batch), items, strict=True)
        ]

    def _rows(self, batch: SourceBatch) -> Iterator[dict[str, CellOrError]]:
        names = dict.fromkeys([*self.columns, *self.prompt.columns.values()])
        values = [batch.values(name) for name in names]
        return (dict(zip(names, row, strict=True)) for row in zip(*values, strict=True))

    def _render_row(self, row: Mapping[str, CellOrError], change: Callable[[str], str] = str) -> RenderedPrompt:
        """`change` is made to the row's own text, before anything is written around it."""
        for column, value in row.items():
            if isinstance(value, RowError):
                return RowError(value.type, f"column {column!r}: {value.message}")
        cells = {column: value for column, value in row.items() if not isinstance(value, RowError)}
        value = cells[self.columns[0]]
        if self.prompt.body is not None:
            return self._render_body(value, change)
        if self.prompt.messages is not None:
            if change is not str:
                return RowError(BAD_ITEMS, "items stand beside a text; the prompt is a chat")
            messages = parse_messages(value)
            return messages if isinstance(messages, RowError) else self._render_chat(self._own(messages), cells)
        if self._template is not None:
            text = self._fill(self._template, {column: cells[column] for column in self.columns})
        else:
            text = _check_text(value)
            text = text if isinstance(text, RowError) else self._own(text)
        if isinstance(text, RowError):
            return RowError(text.type, text.message) if self.prompt.chat else text
        changed = change(text)
        if not self.prompt.chat:
            return PromptText(changed, True)
        return self._render_chat([{"role": "user", "content": changed}], cells)

    def _render_body(self, value: Cell, change: Callable[[str], str]) -> RenderedPrompt:
        asked = parse_body(value)
        if isinstance(asked, str):
            return PromptText(change(self._own(asked)), adds_special_tokens(value))
        if not isinstance(asked, RowError) and change is not str:
            return RowError(BAD_ITEMS, "items stand beside a text; the body's prompt is a chat or tokens")
        if not isinstance(asked, Chat):
            return asked
        if self._chat is None:
            return RowError(BAD_MESSAGES, NO_CHAT_TEMPLATE)
        messages, tools = self._own(asked.messages), self._own(asked.tools)
        arguments = self._own(self.prompt.chat_template_kwargs | asked.arguments)
        return self._chat.render(replace(asked, messages=messages, tools=tools, arguments=arguments))

    def _render_chat(self, messages: list[Message], cells: Mapping[str, Cell]) -> RenderedPrompt:
        """What the job says for all rows, with what the row says itself."""
        assert self._chat is not None
        prompt = self.prompt
        tools = None if prompt.tools_column is None else parse_tools(cells[prompt.tools_column])
        column = prompt.chat_template_kwargs_column
        arguments = {} if column is None else parse_arguments(cells[column])
        if isinstance(tools, RowError):
            return tools
        if isinstance(arguments, RowError):
            return arguments
        if prompt.system is not None and messages[0]["role"] not in ("system", "developer"):
            messages = [{"role": "system", "content": self._own(prompt.system)}, *messages]
        if tools is None and prompt.tools is not None:
            tools = [dict(tool) for tool in prompt.tools]
        chat = Chat(
            messages,
            self._own(tools),
            self._own(prompt.chat_template_kwargs | arguments),
            prompt.add_generation_prompt,
            prompt.continue_final_message,
        )
        return self._chat.render(chat)

    def _fill(self, template: PromptTemplate, values: dict[str, Cell]) -> str | RowError:
        """The template has its own special tokens between marks while it is filled, so that filters see cells as they
        are; then it is the other way round.
        """
        cells = {name: each_text(cell, self._special.as_parsed) for name, cell in values.items()}
        try:
            text = _check_text(template.render(cells))
        except TEMPLATE_FAILURES as problem:
            if isinstance(problem, NullPrintedError):
                problem = NullPrintedError([name for name, cell in values.items() if cell is None])
            return described(TEMPLATE_ERROR, "the template fails on this row", problem)
        return text if isinstance(text, RowError) or self.prompt.parses_special else self._special.exchanged(text)

    def _own(self, value: T) -> T:
        """A row's own texts, in which special tokens are as the job says."""
        return each_text(value, self._of_row)


def check_prompt(prompt: Prompt, tokenizer: "PreTrainedTokenizerFast", chat_template: str | None = None) -> None:
    """Raises UserError where the prompts are chats and there is no template for them."""
    PromptRenderer(prompt, (), tokenizer, SpecialTokens(tokenizer), chat_template)


def named_template(prompt: Prompt, tokenizer: "PreTrainedTokenizerFast") -> str | None:
    """The name of one of the model's templates that the job asks for. Raises UserError where it has none so called."""
    name = prompt.chat_template
    names = list(tokenizer.chat_template) if isinstance(tokenizer.chat_template, dict) else []
    if name is None or name in names:
        return name
    there = f"this model's templates are {', '.join(names)}" if names else "this model has no templates with names"
    raise UserError(f"prompt.chat_template: there is no file {name}, and {there}")


def _check_text(value: Cell) -> str | RowError:
    if value is None:
        return RowError(EMPTY_PROMPT, "the prompt is NULL")
    text = text_of(value)
    if not text.strip():
        said = "the prompt is empty" if not text else "the prompt is white space alone"
        return BlankPrompt(EMPTY_PROMPT, said, text)
    return encoding_error(text) or text
