"""Jinja's filters for cells: what they take and give has a text that is the same in every run."""

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from decimal import Decimal
from functools import wraps
from typing import Any

from jinja2 import Undefined, pass_environment
from jinja2.filters import FILTERS, make_attrgetter

from tasks.request.budgeted_jinja import charged
from tasks.source.cells import text_of

# Draws, so that no two runs have the same prompts; or shows Python's objects.
_NOT_FOR_PROMPTS = {"pprint", "random", "xmlattr"}
# These make a text of whatever they get; of a list or a struct, it is the text that a template prints of it.
_OF_TEXTS = {
    *("capitalize", "center", "e", "escape", "forceescape", "indent", "lower", "replace", "safe", "split", "string"),
    *("striptags", "title", "trim", "truncate", "upper", "urlize", "wordcount", "wordwrap"),
}


class NullPrintedError(ValueError):
    """A NULL in a prompt would read `None`, which nobody means.

    Seen as: the row's `TEMPLATE_ERROR`, with the columns that are NULL in it.
    """

    def __init__(self, columns: Iterable[str] = ()) -> None:
        names = f" ({', '.join(columns)})" if columns else ""
        cure = "write {{ x if x is not none else '' }} where that is meant"
        super().__init__(f"a column that it prints is NULL{names}; {cure}")


def cell_filters() -> dict[str, Callable[..., Any]]:
    """Jinja's own but a few, and two in the place of the methods that templates would call: `split`, `strftime`."""
    kept = {name: function for name, function in FILTERS.items() if name not in _NOT_FOR_PROMPTS}
    kept |= {"attr": _attr, "join": _join, "split": _split, "strftime": _strftime}
    return {name: _on_cells(name, function) for name, function in kept.items()}


def printed(value: Any) -> str:
    if value is None:
        raise NullPrintedError
    return str(value) if isinstance(value, Undefined) else text_of(value)


def formatted(value: Any) -> Any:
    """For `%`, which knows numbers and texts."""
    return value if isinstance(value, int | float | Decimal) and not isinstance(value, bool) else printed(value)


def _on_cells(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes and gives cells alone; what comes one by one is given as a list."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def filtered(*arguments: Any, **options: Any) -> Any:
        given = list(arguments)
        for value in [*given[first:], *options.values()]:
            refuse_others(charged(value))
        if name in _OF_TEXTS and not isinstance(given[first], str):
            given[first] = printed(given[first])
        if name == "format":
            given[1:], options = map(formatted, given[1:]), {key: formatted(options[key]) for key in options}
        result = function(*given, **options)
        if isinstance(result, Undefined | str | dict | tuple) or not isinstance(result, Iterable):
            return result
        return list(result)

    return filtered


def refuse_others(value: Any) -> None:
    if isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            refuse_others(item)
    elif not isinstance(value, Undefined):
        text_of(value)


@pass_environment
def _attr(environment: Any, value: Any, name: str) -> Any:
    return environment.getattr(value, name)


@pass_environment
def _join(environment: Any, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    item = make_attrgetter(environment, attribute) if attribute is not None else _itself
    return d.join(printed(item(one)) for one in value)


def _itself(value: Any) -> Any:
    return value


def _split(text: str, separator: str | None = None) -> list[str]:
    return text.split(separator)


def _strftime(text: str, form: str) -> str:
    """A date's or a timestamp's text in another form; its fraction counts to the microsecond."""
    to_microseconds = re.sub(r"\.(\d{1,6})\d*", lambda fraction: f".{fraction[1]:0<6}", text)
    return datetime.fromisoformat(to_microseconds).strftime(form)
