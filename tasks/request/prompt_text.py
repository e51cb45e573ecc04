"""A row's prompt before it is tokens."""

from dataclasses import dataclass

from engine.request import TokenIds
from tasks.source.row_error import RowError


@dataclass(frozen=True, slots=True)
class PromptText:
    """`text` has marks around special tokens that are text (`tasks/request/special_tokens.py`).

    A chat template writes its own special tokens; to any other text the tokenizer adds them where
    `add_special_tokens`, as in transformers.
    """

    text: str
    add_special_tokens: bool


@dataclass(frozen=True, slots=True)
class BlankPrompt(RowError):
    """A prompt of white space alone, or of nothing: an error, unless a prefix token is read in its place."""

    text: str = ""


# A row may have its prompt in tokens.
RenderedPrompt = PromptText | TokenIds | RowError
