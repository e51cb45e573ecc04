"""A text's tokens are those of its pieces, whatever is in it; what many texts begin with is encoded once."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from engine.model.checkpoint import resolve_model
from engine.model.tokenizer import load_tokenizer
from tasks.request.encode import Encoder
from tasks.request.text_pieces import TextPieces, can_be_cut

LLAMA_3, QWEN_2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in ("{1,3}", "")
)
FRAGMENTS = [
    *(
        "a",
        "B",
        "the",
        " the",
        " them",
        "s a",
        "e o",
        "it's",
        "'s",
        "'LL we",
        " I've",
        "don't",
        "\N{LATIN SMALL LETTER LONG S}",
        "\N{KELVIN SIGN}",
    ),
    *(" ", "  ", "   ", "\n", " \n ", "\r\n", "\t", "\u00a0", "\u2003", "\u200b"),
    *("0", " 12", "345 6", "7a", ".", " ,", "...", '"', "(x)", "a-b", "#", "_", "<|end|>", "<|", "|>", "</s>"),
    *(
        "é",
        "e\u0301",
        " \u0301",
        "ß",
        "日本",
        " 語",
        "\N{ARABIC LETTER ALEF} \N{ARABIC LETTER BEH}",
        "\N{PILE OF POO}",
        "\ufffd",
        "\0",
    ),
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join)
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


def byte_level(
    pre_tokenizer: pre_tokenizers.PreTokenizer = GPT_2,
    normalizer: normalizers.Normalizer | None = None,
    token: str = "<|end|>",
    dropout: float | None = None,
    **flags: bool,
) -> PreTrainedTokenizerFast:
    """Merges across whatever its words let it, BOS before a text and EOS behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["".join(FRAGMENTS[i:] + FRAGMENTS[:i]) for i in range(len(FRAGMENTS))], trainer)
    tokenizer.model.dropout = dropout
    tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<s>", "</s>")])
    tokenizer.add_special_tokens([AddedToken(token, special=True, **flags)])
    ids = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def split(pattern: str, **others: Any) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated", **others), BYTE_LEVEL])


CUT = {
    "embedded": load_tokenizer(resolve_model("embedded")),
    "GPT-2": byte_level(),
    "digits": byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT_2])),
    "Llama 3": byte_level(split(LLAMA_3)),
    "Qwen 2": byte_level(split(QWEN_2), normalizers.NFC()),
}


def without_a() -> PreTrainedTokenizerFast:
    """Of letters of proteins alone: other ones are no token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = GPT_2
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=60, show_progress=False, special_tokens=special)
    tokenizer.train_from_iterator(["MKV LLG CDE"] * 9, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def with_a_kelvin_sign() -> PreTrainedTokenizerFast:
    """A token that is "K x" once it is normalized."""
    backend = byte_level(split(LLAMA_3), normalizers.NFC()).backend_tokenizer
    backend.add_tokens([AddedToken("\N{KELVIN SIGN} x", normalized=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


WHOLE = {
    "a vocabulary without an a": without_a(),
    "bytes before the pattern": byte_level(
        pre_tokenizers.Sequence([BYTE_LEVEL, pre_tokenizers.Split(Regex(LLAMA_3), "isolated")])
    ),
    "a token that is of two words where it is normalized": with_a_kelvin_sign(),
    "a space before the text": byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "words that may hold spaces": byte_level(BYTE_LEVEL),
    "another pattern": byte_level(split(r"\p{L}+ \p{L}+|.")),
    "another use of the pattern": byte_level(split(LLAMA_3, invert=True)),
    "another normalizer": byte_level(normalizer=normalizers.Lowercase()),
    "merges left out at random": byte_level(dropout=0.1),
    "a token that takes spaces with it": byte_level(rstrip=True),
    "a token that is a word of its own": byte_level(token="end", single_word=True),
    "a token of two words": byte_level(token="the end"),
}


def whole(tokenizer: PreTrainedTokenizerFast) -> Callable[[list[str], bool], list[list[int]]]:
    return lambda texts, special: tokenizer(texts, add_special_tokens=special)["input_ids"]


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("piece_characters", [1, 7])
@given(texts=st.lists(TEXTS, min_size=1, max_size=3), special=st.booleans())
@example(texts=["a b c d e f g h i j", "it's the the 12 a <|end|> b\n c"], special=True)
def test_a_text_has_the_tokens_of_its_pieces(name: str, piece_characters: int, texts: list[str], special: bool) -> None:
    tokenizer = CUT[name]
    assert can_be_cut(tokenizer)
    pieces = TextPieces(whole(tokenizer), piece_characters=piece_characters, most_characters=50)
    for _ in range(2):  # the second time out of what is remembered
        found = [ids.tolist() for ids in pieces.encode(texts, special)]
        assert found == tokenizer(texts, add_special_tokens=special)["input_ids"]


@pytest.mark.parametrize("name", WHOLE)
def test_a_tokenizer_that_is_not_known_to_keep_to_the_rule_encodes_texts_whole(name: str) -> None:
    assert not can_be_cut(WHOLE[name])


def test_a_tokenizer_with_a_way_of_its_own_encodes_texts_whole() -> None:
    class Reversed(PreTrainedTokenizerFast):
        def _encode_plus(self, text: Any, **others: Any) -> Any:
            return super()._encode_plus([one[::-1] for one in text], **others)

    tokenizer = Reversed(tokenizer_object=byte_level().backend_tokenizer)
    assert not can_be_cut(tokenizer)
    [ids] = Encoder(tokenizer, 10_000).encode(["one two " * 200], add_special_tokens=False)
    assert ids.tolist() == tokenizer(["one two " * 200], add_special_tokens=False)["input_ids"][0]


def test_a_beginning_that_texts_share_is_encoded_once() -> None:
    asked: list[str] = []

    def encode(texts: list[str], special: bool) -> list[list[int]]:
        asked.extend(texts)
        return [[*map(ord, text)] for text in texts]

    pieces = TextPieces(encode, piece_characters=20, most_characters=200)
    asked.clear()
    shared = "the quick brown fox jumps over the lazy dog and runs away again"
    for end in ("red", "green"):
        [ids] = pieces.encode([f"{shared} {end} "], False)
        assert "".join(map(chr, ids)) == f"{shared} {end} "
    assert asked == [
        "the quick brown fox jumps",
        " over the lazy dog and",
        " runs away again red ",
        " runs away again green ",
    ]

    # What is not asked for is forgotten, the oldest first.
    for number in range(30):
        pieces.encode([f"{shared} {number}", f"{'x' * 30} of {number} y {'z' * 20} is " + "q"], False)
    assert asked.count("the quick brown fox jumps") == 1
    assert pieces.num_remembered < 12
    pieces.encode(["a" * 300 + " b"], False)
    assert pieces.num_remembered == 0


def test_an_encoder_encodes_in_pieces() -> None:
    tokenizer = CUT["embedded"]
    texts = [f"{'word after word ' * 100}<|im_end|> and {name}" for name in "abc"]
    encoder = Encoder(tokenizer, 10_000)
    expected = tokenizer(texts)["input_ids"]
    assert [ids.tolist() for ids in encoder.encode(texts, add_special_tokens=True)] == expected
    assert encoder._pieces is not None
    assert encoder._pieces.num_remembered
