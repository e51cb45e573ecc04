"""Text of unknown origin, made harmless for a terminal."""

import re

from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def as_text(value: str) -> Text:
    """`value` as it is, neither markup nor escape sequences obeyed."""
    return Text(harmless(value))


def harmless(value: str) -> str:
    """`value` without what a terminal obeys; files' names, and DuckDB's words about them, may hold such."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", value.replace("\t", " "))
