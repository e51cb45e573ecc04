"""Labels must get the very tokens that the whole text has, on a tokenizer whose merges cross words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from engine.model.checkpoint import resolve_model
from engine.model.tokenizer import load_tokenizer
from tasks.job.task import Task
from tasks.request.encode import Encoder
from tasks.request.labels import LabelEncoder, LabelledPrompt, parse_labels, split_context
from tasks.request.prompt_text import PromptText
from tasks.source.row_error import RowError
from tests.tasks.fakes import ByteTokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(resolve_model(str(tiny_model)))


def prompt_of(encoder: Encoder, text: str, *labels: str, chat: bool = False) -> LabelledPrompt:
    context, moved = split_context(PromptText(text, not chat))
    [context_ids] = encoder.encode_prompts([context])
    assert not isinstance(context_ids, RowError)
    return LabelledPrompt(context, moved, context_ids, labels)


CONTEXTS = [
    "Is it so? Answer:",
    "Is it so? Answer: ",
    "Is it so?\n\n",
    "the work; ",
    "<|im_start|>user\nSay<|im_end|>\n",
    "a\u00e9.",
]
CHOICE = Task(type="choice", labels_column="labels")
LABELS = (" yes", "no", "s", " not at all, never", "\u00e9t\u00e9", "<|im_end|>")


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_tokens_are_those_of_the_whole_text(tokenizer: PreTrainedTokenizerFast, chat: bool) -> None:
    encoder = Encoder(tokenizer, 1000)
    texts = CONTEXTS
    if chat:
        messages = [[{"role": "user", "content": text}] for text in CONTEXTS]
        texts = [
            str(tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True)) for one in messages
        ]
    prompts = [prompt_of(encoder, text, *LABELS, chat=chat) for text in texts]
    label_encoder = LabelEncoder(encoder)
    for _ in range(2):  # the second time out of the cache
        for prompt, labels in zip(prompts, label_encoder.encode(prompts), strict=True):
            assert not isinstance(labels, RowError)
            for text, ids in zip(LABELS, labels, strict=True):
                whole = tokenizer(prompt.context.text + prompt.moved + text, add_special_tokens=not chat)["input_ids"]
                assert [*ids.tolist()] == whole[len(prompt.context_ids) :], (prompt.context, text)


def test_labels_under_a_chat_template_are_encoded_once(tokenizer: PreTrainedTokenizerFast) -> None:
    calls: list[int] = []

    class Counting(Encoder):
        def encode(self, texts: list[str], *, add_special_tokens: bool) -> list[np.ndarray]:  # type: ignore[override, type-arg]
            calls.append(len(texts))
            return super().encode(texts, add_special_tokens=add_special_tokens)

    encoder = Counting(tokenizer, 1000)
    texts = [f"<|im_start|>user\nquestion {i}<|im_end|>\n<|im_start|>assistant\n" for i in range(50)]
    prompts = [prompt_of(encoder, text, " yes", " no", chat=True) for text in texts]
    calls.clear()
    LabelEncoder(encoder).encode(prompts)
    assert sum(calls) == 3  # the end of the template, and it with each label


def test_white_space_moves_to_the_label() -> None:
    assert split_context(PromptText("Answer: \n", True)) == (PromptText("Answer:", True), " \n")
    assert split_context(PromptText("Answer", False)) == (PromptText("Answer", False), "")


def test_a_label_without_a_token_of_its_own() -> None:
    class Swallowing(ByteTokenizer):
        def _encode(self, text: str) -> list[int]:
            return [1]

    encoder = Encoder(Swallowing(), 100)  # type: ignore[arg-type]
    [labels] = LabelEncoder(encoder).encode([prompt_of(encoder, "context", "label")])
    assert isinstance(labels, RowError)
    assert labels.type == "BAD_LABELS"


@pytest.mark.parametrize("value", [None, [], "", "[", "{}", '"a"', ["a", "a"], ["a", ""], ["a", 1], ["\ud800"], "5"])
def test_labels_that_are_none(value: object) -> None:
    found = parse_labels(value, CHOICE)
    assert isinstance(found, RowError)
    assert found.type == "BAD_LABELS"


def test_a_label_that_melts_into_a_word(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(tokenizer, 1000)
    [labels] = LabelEncoder(encoder).encode([prompt_of(encoder, "all the wor", "ld")])
    assert isinstance(labels, RowError)
    assert labels.type == "BAD_LABELS"


def test_labels_from_json() -> None:
    assert parse_labels('[" a", " b"]', CHOICE) == (" a", " b")


def test_a_label_that_is_there_twice_is_named() -> None:
    assert parse_labels(["a", "b", "b"], CHOICE) == RowError("BAD_LABELS", "the label 'b' is there twice")


@pytest.mark.parametrize(
    ("task", "cure"),
    [
        ({"type": "choice"}, "type: loglikelihood"),
        ({"type": "classify"}, "type: score with apply_softmax: false"),
        ({"type": "score"}, "take apply_softmax: false"),
        ({"type": "score", "apply_softmax": False}, None),
    ],
)
def test_one_label_in_a_row_is_what_it_is_in_a_job(task: dict[str, Any], cure: str | None) -> None:
    found = parse_labels(["a"], Task(**task, labels_column="labels"))
    if cure is None:
        assert found == Task(**task, labels=("a",)).labels == ("a",)
        return
    assert isinstance(found, RowError)
    assert cure in found.message
    with pytest.raises(ValidationError) as refused:
        Task(**task, labels=("a",))
    assert [error["msg"] for error in refused.value.errors()] == [found.message]
