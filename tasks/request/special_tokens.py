"""Special tokens in texts: those that a template writes are parsed, those that a row's own text holds stay text.

A text that is not tokens yet says which is which: a special token between two marks is text, and one without them is
parsed. The marks are code points that Unicode keeps for a program's own use; where a text holds one itself, that one
is between marks too. (transformers' `sanitize_control_tokens` marks texts as well, and encodes what is between marks
alone; here it is encoded with what stands beside it, as any other text is.)
"""

import json
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar, cast

from tokenizers import AddedToken, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARK = f"[{_OPEN}{_CLOSE}]"

T = TypeVar("T")


class SpecialTokens:
    """Those of a tokenizer: what it has as special, and what its owner calls control tokens of a chat."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self._tokenizer = tokenizer
        control = set(getattr(tokenizer, "chat_control_tokens", None) or ())
        self._ids = {
            token.content: number
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.content and (token.special or token.content in control)
        }
        special = _any_of(self._ids) or "(?!)"
        self._to_quote = re.compile(f"{special}|{_MARK}")
        self._quoted = re.compile(f"{_OPEN}({special}|{_MARK}){_CLOSE}|({special})|{_MARK}")

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(self._ids)

    def as_text(self, text: str) -> str:
        """The text with each special token in it between marks."""
        return self._to_quote.sub(_between_marks, text)

    def as_parsed(self, text: str) -> str:
        """The text with its special tokens parsed; only what looks like a mark is between marks."""
        return re.sub(_MARK, _between_marks, text) if has_marks(text) else text

    def exchanged(self, text: str) -> str:
        """What is between marks is parsed, and what is not is between marks; lone marks are dropped."""

        def exchange(found: re.Match[str]) -> str:
            inside, outside = found.groups()
            if outside is not None:
                return f"{_OPEN}{outside}{_CLOSE}"
            return "" if inside is None else inside if inside in self._ids else found[0]

        return self._quoted.sub(exchange, text)

    def last_parsed(self, text: str) -> int:
        """Where the last special token that is parsed begins; -1 where there is none."""
        found = (found for found in self._quoted.finditer(text) if found[2] is not None)
        return max((one.start() for one in found), default=-1)

    def shown(self, text: str) -> str:
        """The text as a person reads it, without marks."""
        return self._quoted.sub(lambda found: found[1] or found[2] or "", text) if has_marks(text) else text

    def encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        """Token ids of texts that have marks, as one text each: no pre-tokenizer sees where the marks were."""
        tokenizer, names, ids = self._renamed

        def rename(found: re.Match[str]) -> str:
            return names[found[2]] if found[2] is not None else found[1] or ""

        renamed = [self._quoted.sub(rename, text) for text in texts]
        encoded = tokenizer.encode_batch(renamed, add_special_tokens=add_special_tokens)
        return [[ids.get(number, number) for number in one.ids] for one in encoded]

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[str, str], dict[int, int]]:
        """The tokenizer with other names for its special tokens, those names, and the tokens by what it gives them.

        The names are drawn, so that no text holds one.
        """
        content = json.loads(self._tokenizer.backend_tokenizer.to_str())
        for token in content["added_tokens"]:
            token["special"] |= token["content"] in self._ids
        renamed = Tokenizer.from_str(json.dumps(content))
        renamed.no_truncation()
        renamed.no_padding()
        renamed.encode_special_tokens = True  # as texts, by tokenizers' word for it
        drawn = secrets.token_hex(16)
        names = {text: f"{_OPEN}{drawn}-{number}{_CLOSE}" for text, number in self._ids.items()}
        added = self._tokenizer.added_tokens_decoder
        renamed.add_tokens([_named(names[text], added[number]) for text, number in self._ids.items()])
        ids = {number: self._ids[text] for text in names if (number := renamed.token_to_id(names[text])) is not None}
        assert len(ids) == len(names), (len(ids), len(names))
        return renamed, names, ids


def has_marks(text: str) -> bool:
    return not text.isascii() and (_OPEN in text or _CLOSE in text)


def num_characters(text: str) -> int:
    """How many characters a text has beside marks."""
    return len(text) - text.count(_OPEN) - text.count(_CLOSE)


def each_text(value: T, change: Callable[[str], str]) -> T:
    """The value with `change` made to each text in it, keys of mappings too."""
    if isinstance(value, str):
        return cast(T, change(value))
    if isinstance(value, list | tuple):
        return cast(T, [each_text(item, change) for item in value])
    if isinstance(value, dict):
        return cast(T, {each_text(key, change): each_text(item, change) for key, item in value.items()})
    return value


def _between_marks(found: re.Match[str]) -> str:
    return f"{_OPEN}{found[0]}{_CLOSE}"


def _named(name: str, token: AddedToken) -> AddedToken:
    return AddedToken(
        name,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=False,
    )


def _any_of(words: Iterable[str]) -> str:
    """A regular expression for the longest of the words that stands at a place, as a trie: some models have thousands.

    Empty for no words.
    """
    rests: dict[str, list[str]] = {}
    ends = False
    for word in words:
        if word:
            rests.setdefault(word[0], []).append(word[1:])
        else:
            ends = True
    branches = [re.escape(first) + _any_of(rest) for first, rest in rests.items()]
    joined = "|".join(branches)
    if ends and branches:
        return f"(?:{joined})?"
    return f"(?:{joined})" if len(branches) > 1 else joined
