"""Jinja with a budget: what a template may do over one row is counted, and ends it where it is too much.

A template, a model's own above all, is somebody's program over somebody's data. What it does is counted in units of
work: one for an iteration, a call, a filter, a comparison or an operator, and one for each `CHARACTERS` characters, or
items, that one of these reads or makes. What an argument multiplies, as `center(10 ** 9)` does, is counted before it
is made. So a row is refused for what its template does with it, on every machine alike, and not for how long that took:
time and memory follow from the work. Nothing is counted outside of `budget`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from types import GeneratorType
from typing import Any, TypeVar

from jinja2 import TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_WORK = 1_000_000
CHARACTERS = 256
# Bits of a whole number; Python writes none of more than 4,300 digits.
_MOST_BITS = 16_384
_CHARGED = "_charged"
# Filters that hand their input on, or a piece of it, without reading what is in it.
_SHALLOW = {
    *("attr", "batch", "count", "d", "default", "dictsort", "first", "items", "last", "length", "list", "map"),
    *("reject", "rejectattr", "reverse", "safe", "select", "selectattr", "slice"),
}
_WIDTH = re.compile(r"\d{5,}|\*")

_SIZED = (str, bytes, list, tuple, set, frozenset, range, Mapping, MappingView)

T = TypeVar("T")


class BudgetError(TemplateError):
    """The template does too much over this row.

    Seen as: the row's `TEMPLATE_ERROR`.
    """

    def __init__(self) -> None:
        super().__init__(f"it does too much: more than {MOST_WORK:,} iterations, calls or lines of text")


class _Budget:
    def __init__(self) -> None:
        self.spent = 0

    def spend(self, work: int) -> None:
        self.spent += work
        if self.spent > MOST_WORK:
            raise BudgetError

    def read(self, value: object) -> None:
        """All that is in a value, however deep."""
        if isinstance(value, str | bytes):
            self.spend(1 + len(value) // CHARACTERS)
        elif isinstance(value, Mapping):
            self.spend(1 + len(value))
            for key, item in value.items():
                self.read(key)
                self.read(item)
        elif isinstance(value, list | tuple | set | frozenset):
            self.spend(1 + len(value))
            for item in value:
                self.read(item)
        else:
            self.spend(1)

    def glance(self, value: object) -> None:
        """A value, and not what is in it."""
        self.spend(1 + _length(value) // CHARACTERS)


_current: ContextVar[_Budget | None] = ContextVar("budget", default=None)


@contextmanager
def budget() -> Iterator[_Budget]:
    """A row's: what a template does inside is counted, and BudgetError raised where it is too much."""
    given = _Budget()
    token = _current.set(given)
    try:
        yield given
    finally:
        _current.reset(token)


class BudgetedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which every template is counted while a `budget` is open."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, *, finalize: Callable[[Any], Any] | None = None, **options: Any) -> None:
        super().__init__(
            finalize=lambda value: charged(value) if finalize is None else finalize(charged(value)), **options
        )
        self.globals.pop("lipsum", None)  # as many paragraphs as it is asked for, drawn

    def _generate(self, source: nodes.Template, *given: Any, **options: Any) -> str:
        """Where constants are computed too. Filters that were added since are counted from here on."""
        self.filters = {name: _budgeted(name, function) for name, function in self.filters.items()} | {
            _CHARGED: _charge
        }
        _charge_tree(source)
        with budget():
            return super()._generate(source, *given, **options)

    def call(__self, __context: Any, __obj: Any, *given: Any, **options: Any) -> Any:  # Jinja's names
        current = _current.get()
        if current is None:
            return super().call(__context, __obj, *given, **options)
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps `format`
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes | int | list | tuple):
            given = tuple(_listed(value, current) for value in given)
            current.spend(_most_made(str(method.__name__), owner, given, options))
        for value in given:
            current.glance(value)
        made = super().call(__context, __obj, *given, **options)
        current.glance(made)
        return made

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        current = _current.get()
        if current is not None:
            current.spend(_operated(operator, left, right))
        made = super().call_binop(context, operator, left, right)
        if current is not None:
            current.glance(made)
        return made

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """A template's text, or a macro's; each piece is counted when it is made."""
        current = _current.get()
        if current is None:
            return "".join(pieces)
        current.spend(1)
        written = []
        for piece in pieces:
            current.glance(piece)
            written.append(piece)
        return "".join(written)


@contextmanager
def chat_budget() -> Iterator[None]:
    """As `budget`, for a template that transformers compiles and renders."""
    _count_chat_templates()
    with budget():
        yield


@cache
def _count_chat_templates() -> None:
    """Has transformers compile chat templates, from here on, in the sandbox in which they are counted.

    It names the class of its sandbox in one place. What it compiled before is forgotten.
    """
    from transformers.utils import chat_template_utils

    setattr(chat_template_utils, ImmutableSandboxedEnvironment.__name__, BudgetedEnvironment)
    chat_template_utils._compile_jinja_template.cache_clear()
    compiled = chat_template_utils._compile_jinja_template("")
    assert isinstance(compiled.environment, BudgetedEnvironment), "transformers compiles chat templates elsewhere"


def _charge_tree(tree: nodes.Template) -> None:
    """Puts what counts around what a template's code does by itself, without a call that its environment sees."""
    for loop in tree.find_all(nodes.For):
        loop.iter = _charged(loop.iter, "items")  # type: ignore[arg-type]
    for compared in tree.find_all(nodes.Compare):
        compared.expr = _charged(compared.expr)
        for operand in compared.ops:
            operand.expr = _charged(operand.expr)
    for joined in tree.find_all(nodes.Concat):
        joined.nodes = [_charged(part) for part in joined.nodes]
    for found in tree.find_all(nodes.Getitem):
        if isinstance(found.arg, nodes.Slice):
            found.node = _charged(found.node, "glance")


def _charged(node: nodes.Expr, how: str = "read") -> nodes.Expr:
    return nodes.Filter(node, _CHARGED, [nodes.Const(how)], [], None, None, lineno=node.lineno)


def _charge(value: Any, how: str) -> Any:
    """The filter that `_charge_tree` writes."""
    current = _current.get()
    if current is None:
        return value
    if how == "read":
        current.read(value)
    elif how == "glance":
        current.glance(value)
    elif isinstance(value, _SIZED):
        current.spend(1 + len(value))
    elif isinstance(value, Iterable):
        return _counted(value, current)
    return value


def _counted(values: Iterable[T], current: _Budget) -> Iterator[T]:
    for value in values:
        current.spend(1)
        yield value


def charged(value: T) -> T:
    """The value, with all that is in it counted as read."""
    current = _current.get()
    if current is not None:
        current.read(value)
    return value


def _budgeted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    if hasattr(function, "is_budgeted"):
        return function
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def budgeted(*given: Any, **options: Any) -> Any:
        current = _current.get()
        if current is None:
            return function(*given, **options)
        if name not in _SHALLOW:
            given = tuple(_listed(value, current) for value in given)
        for value in (*given[first:], *options.values()):
            current.glance(value) if name in _SHALLOW else current.read(value)
        current.spend(_most_made(name, given[first], given[first + 1 :], options))
        made = function(*given, **options)
        current.glance(made)
        return _counted(made, current) if isinstance(made, GeneratorType) else made

    budgeted.is_budgeted = True  # type: ignore[attr-defined]
    return budgeted


def _operated(operator: str, left: Any, right: Any) -> int:
    """Work of an operator, before it is done. Raises BudgetError for a number that would be too long."""
    if operator == "%":
        return _formatted(left, right) if isinstance(left, str | bytes) else 1
    if operator == "+":
        return 1 + (_length(left) + _length(right)) // CHARACTERS
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * (max(0, right) if operator == "**" else 1) + right.bit_length()
        return 1 if bits <= _MOST_BITS else MOST_WORK + 1
    times = next((value for value in (left, right) if isinstance(value, int)), 1)
    return 1 + max(_length(left), _length(right)) * max(0, times) // CHARACTERS if operator == "*" else 1


def _formatted(text: str | bytes, values: object) -> int:
    """Work of `%` and of `format`: a width in a text that is formatted is as many characters."""
    written = text if isinstance(text, str) else text.decode("latin-1")
    inside = re.findall(r"\{[^{}]*:(.*?)\}|%(?:\(.*?\))?([^a-zA-Z%]*)", written)
    if any(_WIDTH.search(part) or "{" in part for pair in inside for part in pair):
        return MOST_WORK + 1
    held = _Budget()
    held.read(values)
    return (1 + written.count("%") + written.count("{")) * held.spent + len(written) // CHARACTERS


def _most_made(name: str, value: Any, given: tuple[Any, ...], options: Mapping[str, Any]) -> int:
    """Work of a filter or a method whose arguments say how much it makes of its value; 1 of any other."""
    arguments = (*given, *options.values())
    numbers = [argument for argument in arguments if isinstance(argument, int)]
    longest = max((_length(argument) for argument in arguments), default=0)
    size, largest = _length(value), max(numbers, default=0)
    if name in ("format", "format_map"):
        return _formatted(value, arguments) if isinstance(value, str | bytes) else 1
    if name in ("center", "ljust", "rjust", "zfill", "to_bytes"):
        return 1 + largest // CHARACTERS
    if name in ("batch", "slice", "round", "tojson"):
        return 1 + max(0, largest) * (1 + size if name == "tojson" else 1)
    if name in ("indent", "expandtabs", "wordwrap"):
        return 1 + (1 + size) * (max(longest, largest if name != "wordwrap" else 0) + 8) // CHARACTERS
    if name in ("replace", "join", "translate", "sum"):
        return 1 + (1 + size) * (1 + longest) // CHARACTERS if name != "sum" else 1 + size * size // CHARACTERS
    if name in ("striptags", "urlize"):
        return 1 + size * (1 + str(value).count("<")) // CHARACTERS // 1024
    return 1


def _length(value: object) -> int:
    return len(value) if isinstance(value, _SIZED) else 0


def _listed(value: Any, current: _Budget) -> Any:
    """A list of what comes one by one, which has no size before; any other value as it is."""
    return list(_counted(value, current)) if isinstance(value, GeneratorType) else value
