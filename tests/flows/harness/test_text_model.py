"""Texts as tokens: those of the harness's own model, to the token."""

from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing

from engine.errors import UserError
from flows.harness.model import TrunklineLM
from tests.flows.harness.conftest import instances, prefixes

PAIRS = [
    ("", "hello"),
    ("", "<|im_start|>user"),
    ("a question\nAnswer:", " yes"),
    ("a question\nAnswer: ", "yes"),
    ("a question \n\n", " yes"),
    ("a question\t", "\n"),
    ("wor", "ding"),
    ("<|im_start|>user\nhi", " there"),
    ("caf", "é"),
    ("e", "\u0301 \N{GRINNING FACE}"),
    (prefixes()[0], " (A)"),
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": " Two "},
]


def asked_tokens(model: HFLM | TrunklineLM, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `TemplateLM.loglikelihood` itself asks a model for."""
    seen: list[Any] = []
    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", lambda _, requests, **__: seen.extend(requests))
    HFLM.loglikelihood(model, instances("loglikelihood", PAIRS), disable_tqdm=True)
    return [(context, continuation) for _, context, continuation in seen]


def test_pairs_are_split_as_the_harness_splits_them(
    ours: TrunklineLM, theirs: HFLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [ours.pair_ids(*pair) for pair in PAIRS] == asked_tokens(theirs, monkeypatch)


def test_a_context_of_white_space_is_as_an_empty_one(ours: TrunklineLM) -> None:
    """The harness's own model ends with an assertion there."""
    assert ours.pair_ids(" \n", "hello") == ours.pair_ids("", " \nhello")


@pytest.fixture
def with_bos(ours: TrunklineLM, tmp_path: Path) -> Path:
    """The model's folder with a tokenizer that puts a BOS before a text, as Llama's does."""
    ours.tokenizer.save_pretrained(tmp_path)
    for file in Path(ours.args.path).iterdir():
        if file.name in ("config.json", "generation_config.json", "model.safetensors"):
            (tmp_path / file.name).symlink_to(file)
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    bos = str(tokenizer.bos_token)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("add_bos_token", [None, True, False])
def test_a_bos_comes_once(with_bos: Path, add_bos_token: bool | None) -> None:
    given = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
    theirs = HFLM(str(with_bos), dtype="float32", device="cpu", **given)
    ours = TrunklineLM(str(with_bos), kv_cache_memory="16MiB", **given)
    texts = ["hello", "<|im_start|>user\nhi", "", " a"]
    assert [ours.tok_encode(text) for text in texts] == [theirs.tok_encode(text) for text in texts]
    assert [ours.prompt_ids(text) for text in texts[:2]] == [
        theirs.tok_batch_encode([text])[0][0].tolist() for text in texts[:2]
    ]
    pairs = [("hello", " there"), ("<|im_start|>user\nhi", " there")]
    assert [ours.pair_ids(*pair) for pair in pairs] == [theirs._encode_pair(*pair) for pair in pairs]


@pytest.mark.parametrize("messages", [CHAT[:2], CHAT, CHAT[1:]], ids=["asked", "begun", "without a system message"])
def test_chats_are_the_harness_own(ours: TrunklineLM, theirs: HFLM, messages: list[dict[str, str]]) -> None:
    for generate in (True, False) if messages[-1]["role"] == "assistant" else (True,):
        expected = theirs.apply_chat_template(messages, add_generation_prompt=generate)
        assert ours.apply_chat_template(messages, add_generation_prompt=generate) == expected
    assert ours.chat_template(True) == theirs.chat_template(True)


def test_a_template_that_takes_no_system_message_gets_none(ours: TrunklineLM, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for message in messages %}{{ message.content }};{% endfor %}"
    )
    monkeypatch.setattr(ours.tokenizer, "chat_template", refusing)
    assert ours.apply_chat_template(CHAT[:2]) == "One?;"


def test_a_model_without_a_template_is_said(ours: TrunklineLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours.tokenizer, "chat_template", None)
    with pytest.raises(UserError, match="--apply_chat_template: this model has no chat template"):
        ours.apply_chat_template(CHAT[1:2])


def test_the_cache_of_prompts_goes_by_the_files(ours: TrunklineLM) -> None:
    assert ours.tokenizer_name.endswith(f"-{ours.get_model_info()['model_sha']}")
