"""What every endpoint of a batch file gives: rows for a request's body, and a response's body for their results."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

Json = dict[str, Any]


class BadRequestError(Exception):
    """What is wrong with a line of a batch file: `code` and `param` are for programs, the message is for people.

    Seen as: that line's entry in the errors file (`docs/batch.md`).
    """

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


@dataclass(frozen=True, slots=True)
class RowAsk:
    """A row of the table: `prompt` as a job's `prompt.body` reads it, `task` and `sampling` as its columns do."""

    prompt: Json
    task: Json
    sampling: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request's rows. `reply` is what the response says again of the request, as JSON has it.

    `structure` in it is the parameter that asks for a form, for an error to name.
    """

    rows: tuple[RowAsk, ...]
    reply: Json


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What every response says of itself; `created` is in seconds since 1970."""

    id: str
    created: int
    model: str
    fingerprint: str


class TokenTexts(ABC):
    """A model's tokens as texts."""

    @abstractmethod
    def text(self, token_ids: Sequence[int]) -> str:
        """What the tokens say, special ones too."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A request whose rows have results: `reply` is its own, `rows` are theirs, none of which is an error."""

    head: ResponseHead
    reply: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    tokens: TokenTexts


class Endpoint(ABC):
    """One `url`. Its object is stateless. `id_prefix` begins the ids of its responses."""

    url: ClassVar[str]
    id_prefix: ClassVar[str]

    @abstractmethod
    def read(self, body: Json) -> Asked:
        """The body has no key that is null. Raises BadRequestError for one that asks for what is not there."""

    @abstractmethod
    def response(self, answered: Answered) -> Json:
        """The response's body."""


def usage(rows: Sequence[Mapping[str, Any]], *, generates: bool = True) -> Json:
    """Tokens of all rows. Those that another row had paid for are cached."""
    prompt, completion, cached = (
        sum(row[name] or 0 for row in rows) for name in ("prompt_tokens", "completion_tokens", "cached_tokens")
    )
    counted: Json = {"prompt_tokens": prompt, "total_tokens": prompt + completion}
    if generates:
        counted["completion_tokens"] = completion
    return counted | {"prompt_tokens_details": {"cached_tokens": cached}}
