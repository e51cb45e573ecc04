"""Chats to prompts, with the model's chat template or the job's."""

from typing import TYPE_CHECKING

from jinja2 import Environment, TemplateError, nodes

from tasks.request.budgeted_jinja import BudgetError, chat_budget
from tasks.request.messages import Chat, Message
from tasks.request.prompt_text import PromptText, RenderedPrompt
from tasks.source.row_error import BAD_MESSAGES, TEMPLATE_ERROR, described

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# What a template may raise over a row's own values; RecursionError comes of values that are nested too deeply, and
# SyntaxError, Python's, of a chat template that is.
TEMPLATE_FAILURES = (
    *(TemplateError, ArithmeticError, AttributeError, LookupError),
    *(RecursionError, SyntaxError, TypeError, ValueError),
)


class ChatRenderer:
    """`template` is the text or the name of one, None for the model's own."""

    def __init__(self, template: str | None, tokenizer: "PreTrainedTokenizerFast") -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._reads_parts: dict[bool, bool] = {}

    def render(self, chat: Chat) -> RenderedPrompt:
        messages = [self._as_read(message, bool(chat.tools)) for message in chat.messages]
        try:
            with chat_budget():
                text = self._tokenizer.apply_chat_template(
                    messages,  # type: ignore[arg-type]
                    tools=chat.tools,  # type: ignore[arg-type]
                    chat_template=self._template,
                    tokenize=False,
                    add_generation_prompt=chat.add_generation_prompt and not chat.continue_final_message,
                    continue_final_message=chat.continue_final_message,
                    **chat.arguments,  # type: ignore[arg-type]
                )
        except BudgetError as problem:
            return described(TEMPLATE_ERROR, "the model's chat template fails on this row", problem)
        except TEMPLATE_FAILURES as problem:
            return described(BAD_MESSAGES, "the model's chat template refuses the messages", problem)
        return PromptText(str(text), add_special_tokens=False)

    def _as_read(self, message: Message, with_tools: bool) -> Message:
        """A content in parts stays so for a template that reads parts; for others it is one text, a part a line."""
        content = message.get("content")
        if not isinstance(content, list):
            return message
        if with_tools not in self._reads_parts:
            self._reads_parts[with_tools] = reads_parts(self._text_of_template(with_tools))
        return (
            message if self._reads_parts[with_tools] else message | {"content": "\n".join(p["text"] for p in content)}
        )

    def _text_of_template(self, with_tools: bool) -> str:
        return str(self._tokenizer.get_chat_template(self._template, [{}] if with_tools else None))


def reads_parts(template: str) -> bool:
    """Whether a chat template goes through a message's content part by part, as vLLM finds it out too."""
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except (TemplateError, RecursionError):  # an extension of transformers; those have one text for a content
        return False
    return any(_is_content(loop.iter) for loop in tree.find_all(nodes.For))


def _is_content(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Filter) and node.node is not None:
        return _is_content(node.node)
    return isinstance(node, nodes.Name) and node.name == "content"
