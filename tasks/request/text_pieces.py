"""Texts to tokens in pieces, so that a beginning that many texts have is encoded once.

A byte-level tokenizer encodes a text word by word, and no word of its patterns goes on behind a letter that a space
follows. So tokens of a text that is cut there are the tokens of its pieces. Cuts are counted from a text's beginning:
texts that begin alike are cut alike.
"""

import json
import re
import threading
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from tokenizers.models import BPE

from engine.request import TokenIds

# Shorter ones cost more to look up, longer ones leave more of a shared beginning to be encoded with what is behind it.
PIECE_CHARACTERS = 512
# Of pieces that are remembered: with their tokens twice as many bytes.
MOST_CHARACTERS = 4_000_000

_CUT = re.compile(r"[A-Za-z](?= [A-Za-z])")
_BEFORE_A_CUT = re.compile(r"[A-Za-z] ")
# As tokenizer.json has them, of Llama 3 and of Qwen 2 and 3. GPT-2's is a part of `ByteLevel`.
_PATTERNS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in ("{1,3}", "")
}

# Texts, and whether special tokens are added: their tokens.
EncodeTexts = Callable[[list[str], bool], list[list[int]]]


class TextPieces:
    """The tokens of texts as `encode` gives them, of which it is asked each remembered piece once."""

    def __init__(
        self,
        encode: EncodeTexts,
        *,
        piece_characters: int = PIECE_CHARACTERS,
        most_characters: int = MOST_CHARACTERS,
    ) -> None:
        self._encode = encode
        self._piece_characters = piece_characters
        self._most_characters = most_characters
        self._lock = threading.Lock()
        self._known: dict[str, TokenIds] = {}
        self._characters = 0
        self._frame = _frame_of(encode)

    @property
    def num_remembered(self) -> int:
        return len(self._known)

    def encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[TokenIds]:
        """(tokens,) of each text, of type int32."""
        pieces = [self._cut(text) for text in texts]
        with self._lock:
            ids = self._ids_of(pieces)
        before, after = self._frame if add_special_tokens else (_NONE, _NONE)
        return [np.concatenate([before, *(ids[piece] for piece in of_text), after]) for of_text in pieces]

    def _cut(self, text: str) -> list[str]:
        pieces, first = [], 0
        while (cut := _CUT.search(text, first + self._piece_characters - 1)) is not None:
            pieces.append(text[first : cut.end()])
            first = cut.end()
        pieces.append(text[first:])
        return pieces

    def _ids_of(self, pieces: Sequence[Sequence[str]]) -> dict[str, TokenIds]:
        """By piece. The last one of a text, which is most often its own, is not remembered."""
        needed = dict.fromkeys(piece for of_text in pieces for piece in of_text)
        ids = {piece: known for piece in needed if (known := self._known.pop(piece, None)) is not None}
        self._known |= ids  # the ones that were asked for last are the last to be forgotten
        new = [piece for piece in needed if piece not in ids]
        encoded = self._encode(new, False) if new else []
        ids |= {piece: np.array(one, np.int32) for piece, one in zip(new, encoded, strict=True)}
        begun = {piece for of_text in pieces for piece in of_text[:-1]}
        self._remember({piece: ids[piece] for piece in new if piece in begun})
        return ids

    def _remember(self, ids: dict[str, TokenIds]) -> None:
        self._known |= ids
        self._characters += sum(map(len, ids))
        while self._characters > self._most_characters:
            [oldest] = islice(self._known, 1)
            del self._known[oldest]
            self._characters -= len(oldest)


def can_be_cut(tokenizer: object) -> bool:
    """Whether a text's tokens are those of its pieces: of tokenizers that are known to keep to the rule above."""
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return False
    if type(tokenizer)._encode_plus is not PreTrainedTokenizerFast._encode_plus:
        return False  # it may do something of its own to a text
    backend = tokenizer.backend_tokenizer
    return (
        isinstance(backend.model, BPE)
        and not backend.model.dropout
        and (backend.normalizer is None or _state(backend.normalizer) == {"type": "NFC"})
        and backend.pre_tokenizer is not None
        and _ends_words(_state(backend.pre_tokenizer))
        and not any(_looks_beside(token, backend.normalizer) for token in tokenizer.added_tokens_decoder.values())
        and _has_a_frame(backend)
    )


_NONE = np.array([], np.int32)


def _frame_of(encode: EncodeTexts) -> tuple[TokenIds, TokenIds]:
    """Special tokens before and behind a text."""
    [plain], [framed] = encode(["a"], False), encode(["a"], True)
    [first] = _places(plain, framed)
    return np.array(framed[:first], np.int32), np.array(framed[first + len(plain) :], np.int32)


def _has_a_frame(backend: Any) -> bool:
    """Whether special tokens around a text are told from its own, of which a vocabulary without "a" has none."""
    plain, framed = (backend.encode("a", add_special_tokens=special).ids for special in (False, True))
    return bool(plain) and len(_places(plain, framed)) == 1


def _places(part: list[int], whole: list[int]) -> list[int]:
    return [at for at in range(len(whole)) if whole[at : at + len(part)] == part]


def _state(part: Any) -> dict[str, Any]:
    """A tokenizer's part as tokenizer.json has it."""
    content: dict[str, Any] = json.loads(part.__getstate__())
    return content


def _ends_words(pre_tokenizer: dict[str, Any]) -> bool:
    """Whether a letter that a space follows is always the last of a word."""
    parts = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    ends = False
    for part in parts:
        match part:
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": uses_regex} if uses_regex or ends:
                ends = True
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
                if pattern not in _PATTERNS:
                    return False
                ends = True
            case {"type": "Digits"}:
                pass
            case _:
                return False
    return ends


def _looks_beside(token: Any, normalizer: Any) -> bool:
    """Whether what stands beside an added token decides on it, or a cut may be in its middle."""
    forms = {token.content, token.content if normalizer is None else normalizer.normalize_str(token.content)}
    return token.lstrip or token.rstrip or token.single_word or any(map(_BEFORE_A_CUT.search, forms))
