"""A tokenizer that is another model's is refused; special tokens without an embedding are the rows' own errors."""

import json
import shutil
from pathlib import Path

import pytest

from engine.errors import UserError
from engine.model.checkpoint import load_shape, resolve_model
from engine.model.tokenizer import load_tokenizer, own_tokenizer


@pytest.fixture
def model_of(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    return folder


def change(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.fault(22)
@pytest.mark.parametrize("fewer", [1, 40_000])
def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(model_of: Path, fewer: int) -> None:
    whole = load_shape(resolve_model(str(model_of))).vocab_size
    change(model_of, "config.json", vocab_size=whole - fewer)
    with pytest.raises(UserError) as said:
        load_tokenizer(resolve_model(str(model_of)))
    assert str(said.value) == (
        f"model.path: model has a vocabulary of {whole - fewer:,} tokens, its tokenizer knows {whole:,}; "
        "take the tokenizer that belongs to the weights"
    )


def test_a_special_token_may_lie_beyond_the_embeddings(model_of: Path) -> None:
    tokenizer = own_tokenizer(resolve_model(str(model_of)))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(model_of)
    model = resolve_model(str(model_of))
    assert load_tokenizer(model).convert_tokens_to_ids("<image>") == load_shape(model).vocab_size


def test_it_is_read_once_while_its_files_are_the_same(model_of: Path) -> None:
    first = load_tokenizer(resolve_model(str(model_of)))
    assert load_tokenizer(resolve_model(str(model_of))) is first
    assert own_tokenizer(resolve_model(str(model_of))) is not first
    (model_of / "chat_template.jinja").write_text("another")
    assert load_tokenizer(resolve_model(str(model_of))).chat_template == "another"


def test_what_its_file_says_of_lengths_is_nobodys_to_change_later(model_of: Path) -> None:
    """A call without cutting takes it out of the tokenizer, which fails where another thread encodes."""
    side = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    change(model_of, "tokenizer.json", truncation=side)
    model = resolve_model(str(model_of))
    assert own_tokenizer(model).backend_tokenizer.truncation is not None
    tokenizer = load_tokenizer(model)
    assert tokenizer.backend_tokenizer.truncation is None
    assert len(tokenizer(["one two three four five"])["input_ids"][0]) > 3


def test_an_end_that_is_no_token_of_the_model_is_no_end(model_of: Path) -> None:
    size = load_shape(resolve_model(str(model_of))).vocab_size
    change(model_of, "generation_config.json", eos_token_id=[2, size])
    assert load_shape(resolve_model(str(model_of))).eos_token_ids == (2,)
