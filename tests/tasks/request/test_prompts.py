from typing import Any

import pyarrow as pa
import pytest

from engine.errors import UserError
from tasks.job.prompt import Prompt
from tasks.request.prompts import PromptRenderer, check_prompt, prompt_columns
from tasks.request.special_tokens import SpecialTokens
from tasks.source.row_error import RowError
from tasks.source.source_rows import SourceBatch
from tests.tasks.fakes import ByteTokenizer


def render(prompt: Prompt, **columns: list[Any]) -> list[str | tuple[str, str]]:
    """Texts, or (type, message) of errors, as the byte tokenizer's model gets them."""
    return render_with(ByteTokenizer(), prompt.model_dump(), **columns)


def render_with(tokenizer: Any, keys: dict[str, Any], **columns: list[Any]) -> list[Any]:
    prompt = Prompt(**keys)
    read = prompt_columns(prompt, list(columns))
    renderer = PromptRenderer(prompt, read, tokenizer, SpecialTokens(tokenizer))
    rendered = renderer.render(SourceBatch(0, pa.record_batch(columns)))
    return [(one.type, one.message) if isinstance(one, RowError) else one.text for one in rendered]


def test_a_template_over_columns() -> None:
    prompt = Prompt(template="{% for tag in tags %}{{ tag|upper }} {% endfor %}{{ title }}\n")
    assert render(prompt, title=["T", "U"], tags=[["a", "b"], []]) == ["A B T", "U"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ who.name }}", "has no attribute 'name'"),
        ("{{ who['x'] }}", "has no attribute 'x'"),
        ("{{ n / 0 }}", "division by zero"),
        ("{{ n + title }}", "unsupported operand"),
        ("{{ n }}{{ nothing }}", "is NULL (nothing); write {{ x if x is not none else '' }} where that is meant"),
        ("{{ nothing | upper }}", "a column that it prints is NULL (nothing)"),
        ("{{ ''.__class__.__mro__ }}{{ n }}", "a value has no methods"),
        ("{{ tags.append('x') }}", "a value has no methods"),
        ("{{ range(1000000) | list }}{{ n }}", "Range too big"),
    ],
)
def test_a_template_that_fails_costs_its_row_alone(template: str, message: str) -> None:
    columns: dict[str, list[Any]] = {"who": [{"a": 1}], "n": [1], "title": ["t"], "nothing": [None], "tags": [["a"]]}
    [(kind, said)] = render(Prompt(template=template), **columns)
    assert kind == "TEMPLATE_ERROR"
    assert message in said


def test_null_may_be_meant() -> None:
    assert render(Prompt(template="{{ a or 'none' }}{% if b %} {{ b }}{% endif %}"), a=[None, "x"], b=["y", None]) == [
        "none y",
        "x",
    ]


@pytest.mark.fault(14)
def test_chat_wraps_a_text_and_leaves_messages_as_they_are() -> None:
    assert render(Prompt(column="a", chat=True), a=["hi", " ", None]) == [
        "<|user|>hi<|end|>\n<|bot|>\n",
        ("EMPTY_PROMPT", "the prompt is white space alone"),
        ("EMPTY_PROMPT", "the prompt is NULL"),
    ]
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    assert render(Prompt(messages="m"), m=[messages]) == ["<|user|>be<|end|>\n<|user|>hi<|end|>\n<|bot|>\n"]


@pytest.mark.fault(22)
def test_a_model_without_a_chat_template() -> None:
    tokenizer = ByteTokenizer()
    tokenizer.chat_template = None
    check_prompt(Prompt(column="a"), tokenizer)  # type: ignore[arg-type]
    for prompt in (Prompt(column="a", chat=True), Prompt(messages="a")):
        with pytest.raises(UserError, match="no chat template"):
            check_prompt(prompt, tokenizer)  # type: ignore[arg-type]


def test_numbers_are_prompts_too() -> None:
    assert render(Prompt(column="n"), n=[7, None]) == ["7", ("EMPTY_PROMPT", "the prompt is NULL")]
