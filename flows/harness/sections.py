"""What is planned at once: all of a call's requests, or as many as fit in memory beside their plan."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from engine.request import Request
from tasks.sections import SECTION_ROWS, SECTION_TOKENS


class Section(Protocol):
    """`num_tokens` are those of its prompts, of which `num_cut` lost their beginning.

    What is asked has a number, in the call's order; one request may stand for several.
    """

    num_tokens: int
    num_cut: int

    def __len__(self) -> int:
        """Requests."""

    def requests(self) -> list[Request]: ...

    def numbers(self, request_id: str) -> list[int]:
        """Of all that the request stands for."""


SectionType = TypeVar("SectionType", bound=Section)


def sections(
    items: Iterable[Any], begin: Callable[[], SectionType], add: Callable[[SectionType, int, Any], None]
) -> Iterator[SectionType]:
    """`items` in order, as many to a section as it holds: `add` puts one, with its number, into the section.

    There is no section where there are no items.
    """
    section = begin()
    for number, item in enumerate(items):
        add(section, number, item)
        if len(section) >= SECTION_ROWS or section.num_tokens >= SECTION_TOKENS:
            yield section
            section = begin()
    if len(section):
        yield section


def needed_tokens(request: Request) -> int:
    """Of prompt and answer; a label's last token is only looked up."""
    if request.labels is None:
        return len(request.prompt_token_ids) + request.max_tokens
    return len(request.prompt_token_ids) + max(map(len, request.labels)) - 1
