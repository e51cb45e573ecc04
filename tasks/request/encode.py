"""Texts to token ids, in batches whose size is bounded in characters."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from engine.request import TokenIds
from tasks.source.row_error import CONTEXT_OVERFLOW, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A token being encoded takes a hundred bytes and more.
_BATCH_CHARACTERS = 500_000


class Encoder:
    """`add_special_tokens` as for plain text; the text of a chat template holds its own."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", max_tokens: int, *, add_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._add_special_tokens = add_special_tokens
        self._max_tokens = max_tokens
        # No token stands for more characters than its own text has, so a longer prompt need not be encoded.
        vocabulary = tokenizer.get_vocab()
        self._max_characters = max_tokens * max(map(len, vocabulary))
        self.largest_id = max(vocabulary.values())
        self.special_tokens = tuple(tokenizer.all_special_tokens)

    def fits(self, text: str) -> bool:
        """False for a text that is too long for the context whatever its tokens are."""
        return len(text) <= self._max_characters

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool | None = None) -> list[TokenIds]:
        special = self._add_special_tokens if add_special_tokens is None else add_special_tokens
        return list(chain.from_iterable(self._encode(part, special) for part in _bounded(texts)))

    def encode_prompts(self, prompts: Sequence[str | RowError]) -> list[TokenIds | RowError]:
        """Token ids, or CONTEXT_OVERFLOW for a prompt of more than `max_tokens`; errors stay."""
        short = [prompt for prompt in prompts if isinstance(prompt, str) and self.fits(prompt)]
        encoded = iter(self.encode(short))
        return [
            prompt
            if isinstance(prompt, RowError)
            else self._check(next(encoded))
            if self.fits(prompt)
            else RowError(CONTEXT_OVERFLOW, f"{len(prompt)} characters cannot fit {self._max_tokens} tokens")
            for prompt in prompts
        ]

    def _check(self, token_ids: TokenIds) -> TokenIds | RowError:
        if len(token_ids) <= self._max_tokens:
            return token_ids
        return RowError(CONTEXT_OVERFLOW, f"{len(token_ids)} prompt tokens; at most {self._max_tokens} fit")

    def _encode(self, texts: list[str], special: bool) -> list[TokenIds]:
        encoded = self._tokenizer(
            texts,
            add_special_tokens=special,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [np.array(ids, np.int32) for ids in encoded["input_ids"]]


def _bounded(texts: Sequence[str]) -> Iterator[list[str]]:
    part: list[str] = []
    characters = 0
    for text in texts:
        part.append(text)
        characters += len(text)
        if characters > _BATCH_CHARACTERS:
            yield part
            part, characters = [], 0
    if part:
        yield part
