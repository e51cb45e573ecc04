"""Texts to token ids, in batches whose size is bounded in characters."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from engine.request import TokenIds
from tasks.request.prompt_text import PromptText, RenderedPrompt
from tasks.request.special_tokens import SpecialTokens, has_marks, num_characters
from tasks.source.row_error import CONTEXT_OVERFLOW, UNKNOWN_TOKEN, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A token being encoded takes a hundred bytes and more.
_BATCH_CHARACTERS = 500_000


class Encoder:
    """A model's tokenizer, for prompts of at most `max_tokens`."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        # No token stands for more characters than its own text has, so a longer prompt need not be encoded.
        vocabulary = tokenizer.get_vocab()
        self._max_characters = max_tokens * max(map(len, vocabulary))
        self.largest_id = max(vocabulary.values())
        self.special_tokens = SpecialTokens(tokenizer)
        self._bos = tokenizer.bos_token_id

    def fits(self, text: str) -> bool:
        """False for a text that is too long for the context whatever its tokens are."""
        return len(text) <= self._max_characters or num_characters(text) <= self._max_characters

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[TokenIds]:
        """Each text's tokens. `add_special_tokens` as in transformers; a text that begins with BOS gets no second."""
        parts = (self._encode(part, add_special_tokens) for part in _bounded(texts))
        return list(chain.from_iterable(parts))

    def encode_prompts(self, prompts: Sequence[RenderedPrompt]) -> list[TokenIds | RowError]:
        """Token ids, or CONTEXT_OVERFLOW for a prompt of more than `max_tokens`; errors stay."""
        encoded = [prompt if isinstance(prompt, RowError) else self._without_encoding(prompt) for prompt in prompts]
        for special in (False, True):
            texts = {
                row: prompt.text
                for row, prompt in enumerate(prompts)
                if encoded[row] is None and isinstance(prompt, PromptText) and prompt.add_special_tokens is special
            }
            for row, ids in zip(texts, self.encode(list(texts.values()), add_special_tokens=special), strict=True):
                encoded[row] = self._check(ids)
        return [one for one in encoded if one is not None]

    def _without_encoding(self, prompt: PromptText | TokenIds) -> TokenIds | RowError | None:
        """What is known of a prompt whose text is not encoded: None, unless it is tokens or too long."""
        if not isinstance(prompt, PromptText):
            if (prompt > self.largest_id).any():
                return RowError(UNKNOWN_TOKEN, f"the prompt has tokens beyond {self.largest_id}, the tokenizer's last")
            return self._check(prompt)
        if self.fits(prompt.text):
            return None
        said = f"{num_characters(prompt.text)} characters cannot fit {self._max_tokens} tokens"
        return RowError(CONTEXT_OVERFLOW, said)

    def _check(self, token_ids: TokenIds) -> TokenIds | RowError:
        if len(token_ids) <= self._max_tokens:
            return token_ids
        return RowError(CONTEXT_OVERFLOW, f"{len(token_ids)} prompt tokens; at most {self._max_tokens} fit")

    def _encode(self, texts: list[str], special: bool) -> list[TokenIds]:
        marked = {row: text for row, text in enumerate(texts) if has_marks(text)}
        plain = [text for row, text in enumerate(texts) if row not in marked]
        of_plain = iter(self._encode_plain(plain, special) if plain else ())
        of_marked = iter(self.special_tokens.encode(list(marked.values()), special) if marked else ())
        every = (next(of_marked if row in marked else of_plain) for row in range(len(texts)))
        return [np.array(self._with_one_bos(ids) if special else ids, np.int32) for ids in every]

    def _encode_plain(self, texts: list[str], special: bool) -> list[list[int]]:
        encoded = self._tokenizer(
            texts,
            add_special_tokens=special,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        """Without the BOS that the tokenizer put before a text's own, as lm-evaluation-harness has it."""
        return ids[1:] if len(ids) > 1 and ids[0] == ids[1] == self._bos else ids


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
