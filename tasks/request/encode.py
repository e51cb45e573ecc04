"""Texts to token ids, in batches whose size is bounded in characters."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from engine.request import TokenIds
from tasks.request.prompt_text import PromptText, RenderedPrompt
from tasks.request.special_tokens import SpecialTokens, has_marks, num_characters
from tasks.request.text_pieces import TextPieces, can_be_cut
from tasks.source.row_error import CONTEXT_OVERFLOW, UNKNOWN_TOKEN, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A token being encoded takes a hundred bytes and more.
_BATCH_CHARACTERS = 500_000


class Encoder:
    """A model's tokenizer, for prompts of at most `max_tokens`.

    `truncate` is a job's `truncate_prompt_tokens`: the last tokens of a prompt that are kept, -1 for all that fit.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", max_tokens: int, *, truncate: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._truncate = truncate
        # No token stands for more characters than its own text has, so a longer prompt need not be encoded.
        vocabulary = tokenizer.get_vocab()
        self._max_characters = max_tokens * max(map(len, vocabulary))
        self.largest_id = max(vocabulary.values())
        self.special_tokens = SpecialTokens(tokenizer)
        self._bos = tokenizer.bos_token_id
        self._pieces = TextPieces(self._encode_plain) if can_be_cut(tokenizer) else None

    @property
    def prefix_token_id(self) -> int | None:
        """What a text is scored behind that has no context: BOS, or else EOS, as lm-evaluation-harness takes them."""
        token: int | None = self._tokenizer.eos_token_id if self._bos is None else self._bos
        return token

    def fits(self, text: str) -> bool:
        """False for a text that is too long for the context whatever its tokens are."""
        most = self._max_characters
        return self._truncate is not None or len(text) <= most or num_characters(text) <= most

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[TokenIds]:
        """Each text's tokens. `add_special_tokens` as in transformers; a text that begins with BOS gets no second."""
        parts = (self._encode(part, add_special_tokens) for part in _bounded(texts))
        return list(chain.from_iterable(parts))

    def encode_prompts(self, prompts: Sequence[RenderedPrompt]) -> list[TokenIds | RowError]:
        """Token ids, cut or CONTEXT_OVERFLOW where there are more than `max_tokens`; errors stay."""
        return [ids if isinstance(ids, RowError) else self.cut(ids) for ids in self.encode_whole(prompts)]

    def encode_whole(self, prompts: Sequence[RenderedPrompt]) -> list[TokenIds | RowError]:
        """Token ids of prompts that are still to be cut, with what comes behind them known."""
        short = [self._unless_too_long(one) if isinstance(one, PromptText) else one for one in prompts]
        return self.encode_texts(short)

    def encode_texts(self, prompts: Sequence[RenderedPrompt]) -> list[TokenIds | RowError]:
        """Token ids of texts of any length, and of prompts that are tokens; errors stay."""
        encoded = [None if isinstance(one, PromptText) else self._without_encoding(one) for one in prompts]
        for special in (False, True):
            texts = {
                row: prompt.text
                for row, prompt in enumerate(prompts)
                if encoded[row] is None and isinstance(prompt, PromptText) and prompt.add_special_tokens is special
            }
            for row, ids in zip(texts, self.encode(list(texts.values()), add_special_tokens=special), strict=True):
                encoded[row] = ids
        return [one for one in encoded if one is not None]

    def _without_encoding(self, prompt: TokenIds | RowError) -> TokenIds | RowError:
        if isinstance(prompt, RowError) or not (prompt > self.largest_id).any():
            return prompt
        return RowError(UNKNOWN_TOKEN, f"the prompt has tokens beyond {self.largest_id}, the tokenizer's last")

    def _unless_too_long(self, prompt: PromptText) -> PromptText | RowError:
        if self.fits(prompt.text):
            return prompt
        said = f"{num_characters(prompt.text)} characters cannot fit {self._max_tokens} tokens"
        return RowError(CONTEXT_OVERFLOW, said)

    def cut(self, token_ids: TokenIds, behind: int = 0, what: str = "the prompt has") -> TokenIds | RowError:
        """The prompt with room for `behind` tokens that are computed behind it: its last tokens, if the job truncates.

        CONTEXT_OVERFLOW, which begins with `what`, where it is too long.
        """
        room = self._max_tokens - behind
        last = room if self._truncate == -1 else self._truncate
        kept = token_ids if last is None or last < 1 else token_ids[-last:]
        if len(kept) <= room:
            return kept
        return RowError(CONTEXT_OVERFLOW, f"{what} {len(kept) + behind} tokens; at most {self._max_tokens} fit")

    @property
    def makes_room(self) -> bool:
        """Whether a prompt gives way to what is asked behind it."""
        return self._truncate == -1

    def _encode(self, texts: list[str], special: bool) -> list[TokenIds]:
        marked = {row: text for row, text in enumerate(texts) if has_marks(text)}
        plain = [text for row, text in enumerate(texts) if row not in marked]
        of_plain = iter(self._encode_unmarked(plain, special))
        of_marked = iter(_arrays(self.special_tokens.encode(list(marked.values()), special)) if marked else ())
        every = (next(of_marked if row in marked else of_plain) for row in range(len(texts)))
        return [self._with_one_bos(ids) if special else ids for ids in every]

    def _encode_unmarked(self, texts: list[str], special: bool) -> list[TokenIds]:
        if not texts:
            return []
        if self._pieces is not None:
            return self._pieces.encode(texts, special)
        return _arrays(self._encode_plain(texts, special))

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

    def _with_one_bos(self, ids: TokenIds) -> TokenIds:
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


def _arrays(ids: Sequence[Sequence[int]]) -> list[TokenIds]:
    return [np.array(one, np.int32) for one in ids]
