"""Texts of sampling parameters as tokens: words that may not come to be, and stops that are tokens of their own."""

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@lru_cache(maxsize=64)
def bad_word_ids(tokenizer: "PreTrainedTokenizerFast", words: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """The sequences of tokens that say one of `words`, at the beginning of a word or within one."""
    texts = dict.fromkeys(text for word in words for text in (word, f" {word.lstrip()}"))
    encoded = (tuple(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    return tuple(dict.fromkeys(ids for ids in encoded if ids))


@lru_cache(maxsize=64)
def special_stops(tokenizer: "PreTrainedTokenizerFast", stops: tuple[str, ...]) -> dict[int, str]:
    """Those of `stops` that are a special token, by token: no text shows them, so they are looked for as tokens."""
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {added[stop]: stop for stop in stops if stop in added}
