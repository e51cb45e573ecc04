"""Labels as continuations of a prompt, split as lm-evaluation-harness splits a context from its continuation.

White space that ends the context moves to the label; context and label are encoded as one text, and the context's
tokens are cut off: a label's first token may depend on what is before it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.request import TokenIds
from tasks.job.task import Task, lone_label_fault
from tasks.request.encode import Encoder
from tasks.request.prompt_text import PromptText
from tasks.request.special_tokens import has_marks
from tasks.source.cells import is_utf8
from tasks.source.row_error import BAD_LABELS, CONTEXT_OVERFLOW, RowError

_CACHED_LABEL_SETS = 4096
_CACHED_CHARACTERS = 20_000


@dataclass(frozen=True, slots=True)
class LabelledPrompt:
    """`moved` is the white space that ended the prompt; `context` the rest, `context_ids` its tokens."""

    context: PromptText
    moved: str
    context_ids: TokenIds
    labels: tuple[str, ...]


LabelIds = tuple[TokenIds, ...]


@dataclass(frozen=True, slots=True)
class _Pending:
    """Texts to encode for one label set, and the tokens of the context that each begins with."""

    texts: tuple[str, ...]
    context_ids: TokenIds
    add_special_tokens: bool


class LabelEncoder:
    """Encodes labels once for equal ends of contexts, where the end begins with a special token.

    Tokenizers cut at special tokens before anything else, so no label's tokens depend on what is before the last one:
    under a chat template, all rows share their label tokens.
    """

    def __init__(
        self,
        encoder: Encoder,
        word: str = "label",
        error_type: str = BAD_LABELS,
        *,
        parses_special: bool = True,
        drops: bool = False,
    ) -> None:
        """Errors are of `error_type`, and call a label `word`; `parses_special` as a job's `special_tokens: parsed`.

        With `drops` a label that would change the context's tokens has none of its own, and is no error.
        """
        self._encoder = encoder
        special = encoder.special_tokens
        self._written = special.as_parsed if parses_special else special.as_text
        self._word = word
        self._error_type = error_type
        self._drops = drops
        self._cache: dict[tuple[str, ...], LabelIds | RowError] = {}

    def encode(self, prompts: Sequence[LabelledPrompt]) -> list[LabelIds | RowError]:
        """The tokens of each prompt's labels, or an error where one has no token of its own."""
        if len(self._cache) > _CACHED_LABEL_SETS:
            self._cache.clear()
        keys = [self._key(prompt) for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._cache}
        encoded = self._cache | self._encode_all(missing)
        self._cache |= {key: encoded[key] for key in missing if _is_worth_caching(key)}
        return [encoded[key] for key in keys]

    def encode_alone(self, text: str) -> TokenIds:
        """The tokens of a label that has no context."""
        (ids,) = self._encoder.encode([self._written(text)], add_special_tokens=False)
        return ids

    def _key(self, prompt: LabelledPrompt) -> tuple[str, ...]:
        text = prompt.context.text
        start = self._last_special(text)
        special = start < 0 and prompt.context.add_special_tokens
        labels = map(self._written, prompt.labels)
        return (text[max(start, 0) :], prompt.moved, str(start >= 0), str(special), *labels)

    def _last_special(self, text: str) -> int:
        """Where the last special token that is parsed begins; -1 where there is none, or not every one is parsed."""
        if has_marks(text):
            return -1
        return max((text.rfind(token) for token in self._encoder.special_tokens.texts), default=-1)

    def _encode_all(self, missing: dict[tuple[str, ...], LabelledPrompt]) -> dict[tuple[str, ...], LabelIds | RowError]:
        too_long = RowError(CONTEXT_OVERFLOW, f"the prompt with its {self._word} is too long for the context")
        fitting = {
            key: prompt
            for key, prompt in missing.items()
            if self._encoder.fits(prompt.context.text + prompt.moved + max(key[4:], key=len))
        }
        pending = {key: self._pending(key, prompt) for key, prompt in fitting.items()}
        ids: dict[tuple[str, ...], list[TokenIds]] = {key: [] for key in pending}
        for special in (True, False):
            group = [(key, text) for key, p in pending.items() if p.add_special_tokens is special for text in p.texts]
            encoded = self._encoder.encode([text for _, text in group], add_special_tokens=special)
            for (key, _), token_ids in zip(group, encoded, strict=True):
                ids[key].append(self._behind(token_ids, pending[key].context_ids))
        return {key: self._checked(ids[key]) if key in ids else too_long for key in missing}

    def _pending(self, key: tuple[str, ...], prompt: LabelledPrompt) -> _Pending:
        end, moved, is_cut, _, *labels = key
        texts = tuple(end + moved + label for label in labels)
        if is_cut == "False":
            return _Pending(texts, prompt.context_ids, prompt.context.add_special_tokens)
        (end_ids,) = self._encoder.encode([end], add_special_tokens=False)
        return _Pending(texts, end_ids, False)

    def _behind(self, token_ids: TokenIds, context_ids: TokenIds) -> TokenIds:
        """What is a label's of the tokens of context and label."""
        count = len(context_ids)
        if self._drops and not np.array_equal(token_ids[:count], context_ids):
            return token_ids[:0]
        return token_ids[count:]

    def _checked(self, labels: list[TokenIds]) -> LabelIds | RowError:
        if self._drops or all(map(len, labels)):
            return tuple(labels)
        said = f"a {self._word} melts into the prompt's last token; put white space before it"
        return RowError(self._error_type, said)


def _is_worth_caching(key: tuple[str, ...]) -> bool:
    """A whole prompt comes back too seldom; the end of a chat template with every row."""
    return key[2] == "True" and sum(map(len, key)) <= _CACHED_CHARACTERS


def split_context(prompt: PromptText) -> tuple[PromptText, str]:
    """The context, and the white space that moves to the labels."""
    context = prompt.text.rstrip()
    return replace(prompt, text=context), prompt.text[len(context) :]


def parse_labels(value: object, task: Task) -> tuple[str, ...] | RowError:
    """A column's value as labels of the task: a list of texts, or its JSON text."""
    if isinstance(value, RowError):
        return value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return RowError(BAD_LABELS, "the labels are neither a list nor a JSON list")
    if not isinstance(value, list) or not value:
        return RowError(BAD_LABELS, "there are no labels" if value in (None, []) else "the labels are not a list")
    if not all(isinstance(label, str) and label.strip() for label in value):
        return RowError(BAD_LABELS, "a label is NULL, empty or no text")
    if not all(is_utf8(label) and "\x00" not in label for label in value):
        return RowError(BAD_LABELS, "a label is not valid UTF-8")
    twice = next((label for place, label in enumerate(value) if label in value[:place]), None)
    if twice is not None:
        return RowError(BAD_LABELS, f"the label {twice!r:.60} is there twice")
    if len(value) == 1 and (fault := lone_label_fault(task.type, task.apply_softmax)) is not None:
        return RowError(BAD_LABELS, fault)
    return tuple(value)
