"""A text's reasoning is split off: as the model's template writes it, as the job says, or cut before its end."""

import pytest

from engine.errors import UserError
from engine.request import RequestOutput
from tasks.job.job_file import parse_job
from tasks.job.reasoning import Reasoning
from tasks.job.sampling import Sampling
from tasks.job.task import Task
from tasks.request.ask import Ask, parse_ask
from tasks.request.generate import Generate
from tasks.request.prompt_text import PromptText
from tasks.request.reasoning import ReasoningFinder
from tasks.request.special_tokens import SpecialTokens
from tests.tasks.request.chat_families import FAMILIES

TURN = "<|im_start|>user\nIs <think> a mark?<|im_end|>\n<|im_start|>assistant\n"
MARKS = {"start": "<think>", "end": "</think>"}


def resolved(family: str, text: str, *, chat: bool = True, **keys: object) -> Reasoning:
    tokenizer = FAMILIES[family]()
    finder = ReasoningFinder(tokenizer, SpecialTokens(tokenizer), None)
    ask = Ask(Task.model_validate({"type": "generate"} | keys), Sampling())
    found = finder.resolved(ask, PromptText(text, not chat))
    assert parse_ask(found.text) == found
    return found.task.reasoning


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("<think></think>Yes.", "", "Yes."),
        ("<think>\nHm, I am cut", "Hm, I am cut", ""),
        ("Yes.", None, "Yes."),
        (" Say </think>.", None, " Say </think>."),
    ],
)
def test_what_is_before_the_answer(text: str, reasoning: str | None, answer: str) -> None:
    assert Reasoning(**MARKS, opened=False).divide(text) == (reasoning, answer)


def test_a_prompt_may_have_begun_it() -> None:
    opened = Reasoning(**MARKS, opened=True)
    assert opened.divide("Hm.</think>Yes.") == ("Hm.", "Yes.")
    assert opened.divide("Hm, I am cut") == ("Hm, I am cut", "")
    assert opened.divide("<think>Again.</think>Yes.") == ("Again.", "Yes.")


def test_the_models_own_marks() -> None:
    assert resolved("chatml", TURN) == Reasoning(**MARKS, opened=False)
    assert resolved("chatml", f"{TURN}<think>\n") == Reasoning(**MARKS, opened=True)
    assert resolved("chatml", f"{TURN}<think>\n\n</think>\n\n") == Reasoning(**MARKS, opened=False)
    assert resolved("llama", TURN) == Reasoning()
    assert resolved("chatml", TURN, chat=False) == Reasoning()


def test_what_the_job_says() -> None:
    assert resolved("chatml", TURN, reasoning={"split": False}) == Reasoning(split=False)
    own = {"start": "[r]", "end": "[/r]"}
    assert resolved("llama", "text", chat=False, reasoning=own) == Reasoning(**own, opened=False)
    assert resolved("llama", "text [r]", reasoning=own) == Reasoning(**own, opened=True)
    assert resolved("llama", "text", reasoning=own | {"opened": True}) == Reasoning(**own, opened=True)


def test_columns_of_a_result() -> None:
    output = RequestOutput("r", "length", 3, token_ids=(1,), text="<think>Hm.</think>Yes.")
    known = Ask(Task.model_validate({"type": "generate", "reasoning": MARKS | {"opened": False}}), Sampling())
    columns = Generate().result(known, (), (output,))
    assert (columns["reasoning"], columns["generated_text"]) == ("Hm.", "Yes.")
    plain = Ask(Task.model_validate({"type": "generate"}), Sampling())
    columns = Generate().result(plain, (), (output,))
    assert (columns["reasoning"], columns["generated_text"]) == (None, output.text)
    assert Generate().decisive(known) != Generate().decisive(plain)


def test_keys_of_another_type_or_half_of_them_are_refused() -> None:
    content = {"name": "a", "source": {"jsonl": "a"}, "prompt": {"column": "a"}}
    for task, said in (
        ({"type": "generate", "reasoning": {"start": "a"}}, "start and end go together"),
        ({"type": "perplexity", "reasoning": MARKS}, "reasoning belongs to type: generate"),
    ):
        with pytest.raises(UserError, match=said):
            parse_job(content | {"task": task}, "job")
