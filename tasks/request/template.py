"""A Jinja template over a row's cells: a name is the row's cell, and an attribute is a cell's field.

A column whose name is no name of Jinja's, or a variable's too, is written `column('my column')`, unless the template
has a macro `column`.
"""

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, meta, nodes
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from engine.errors import UserError
from tasks.request.budgeted_jinja import BudgetedEnvironment, budget, charged
from tasks.request.template_filters import cell_filters, formatted, printed, refuse_others
from tasks.source.cells import Cell

_ALONE = (nodes.Block, nodes.Extends, nodes.FromImport, nodes.Import, nodes.Include)
COLUMN = "column"
_WORDS = {"true", "True", "false", "False", "none", "None"}


class PromptTemplate:
    """Raises UserError for a template that is not one. `written` is made of each text that the template itself writes,
    and of no cell's.
    """

    def __init__(self, text: str, written: Callable[[str], str] = str) -> None:
        self._environment = _CellEnvironment()
        tree = self._parse(text)
        columns = {} if _has_macro(tree, COLUMN) else _name_columns(tree)
        _change_written(tree, written)
        _refuse_one_name_for_two(tree)
        columns[_rename_self(tree)] = "self"
        self._words = {str(word) for _, _, word in self._environment.lex(text)} & _WORDS
        for joined in tree.find_all(nodes.Concat):
            joined.nodes = [_as_text(part) for part in joined.nodes]
        self._columns = {name: columns.get(name, name) for name in _undeclared(tree)}
        self.names = tuple(sorted({*self._columns.values()}))
        self._called = {name for name in _FUNCTIONS if not _is_printed(tree, name)} - {*columns.values()}
        self._template = self._environment.from_string(tree, globals=_FUNCTIONS)

    def columns(self, available: Sequence[str]) -> tuple[str, ...]:
        """The columns among `names`; the others are functions that it calls, and no column has their name."""
        for word in sorted(self._words & set(available)):
            raise UserError(f"prompt.template: {word} is Jinja's word and a column's name; give the column another")
        columns = tuple(name for name in self.names if name in available or name not in self._called)
        if not columns:
            raise UserError("prompt.template: names no column, so that all prompts would be equal")
        return columns

    def render(self, cells: Mapping[str, Cell]) -> str:
        """The text for a row. `cells` has the row's cell for each of the columns. Raises what a template may."""
        with budget():
            return self._template.render(
                {name: cells[column] for name, column in self._columns.items() if column in cells}
            )

    def _parse(self, text: str) -> nodes.Template:
        try:
            self._environment.from_string(text)
            tree = self._environment.parse(text)
        except TemplateSyntaxError as problem:
            cure = f" ({SPELLING})" if "end of print statement" in str(problem.message) else ""
            raise UserError(f"prompt.template: line {problem.lineno}: {problem.message}{cure}") from None
        except (RecursionError, MemoryError, SyntaxError):  # Python's, which a template becomes
            raise UserError("prompt.template: is nested too deeply") from None
        except ValueError as problem:
            raise UserError(f"prompt.template: holds a number that is too long ({str(problem)[:60]})") from None
        if any(tree.find(kind) is not None for kind in _ALONE):
            raise UserError("prompt.template: block, include, import and extends are not there; write it whole")
        return tree


class _CellEnvironment(BudgetedEnvironment):
    """Attributes are fields, results of filters are cells, and what is printed has a text.

    A method is never found: what is one depends on Python, and its text on where it lies in memory.
    """

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, finalize=printed)
        self.globals = {}  # a name is a column first; `PromptTemplate` gives the functions
        self.filters = cell_filters()
        self.policies["json.dumps_function"] = partial(json.dumps, default=float)  # of a decimal

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, _JINJAS):
            return super().getattr(obj, attribute)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, _JINJAS):
            return super().getitem(obj, argument)
        if argument in getattr(obj, "_fields", ()):  # of `groupby`
            return getattr(obj, argument)
        try:
            if isinstance(obj, dict) or (isinstance(obj, list | tuple | str) and isinstance(argument, int)):
                return obj[argument]
        except (LookupError, TypeError):
            pass
        if isinstance(argument, str) and hasattr(obj, argument) and not isinstance(obj, dict):
            return self.undefined(f"a value has no methods; write {argument!r} as a filter, if there is one")
        return self.undefined(obj=obj, name=argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`%`, which makes a text of its right side where the left one is a text."""
        if operator == "%":
            refuse_others(charged(right))
        if operator == "%" and isinstance(left, str):
            right = tuple(map(formatted, right)) if isinstance(right, tuple) else formatted(right)
        return super().call_binop(context, operator, left, right)


# What Jinja itself hands to a template; it has attributes, and no text.
_JINJAS = (LoopContext, Macro, Namespace, Undefined)


def _range(*arguments: int) -> list[int]:
    return list(safe_range(*arguments))


# How a column is written whose name is no name of Jinja's.
SPELLING = f"a column such as 'my column' is written {COLUMN}('my column')"

_FUNCTIONS: dict[str, Callable[..., Any]] = {"dict": dict, "namespace": Namespace, "range": _range}


def _undeclared(tree: nodes.Template) -> set[str]:
    with budget():  # constants are computed here
        return meta.find_undeclared_variables(tree)


class _ColumnNames(NodeTransformer):
    """Puts names into the place of calls of `column`; `names` are those, by the column.

    A digit begins each of them, as of no name that a template writes: no variable has one of them, nor hides it.
    """

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def visit_Call(self, node: nodes.Call) -> nodes.Node:
        self.generic_visit(node)
        if node.node != nodes.Name(COLUMN, "load"):
            return node
        match node:
            case nodes.Call(args=[nodes.Const(value=str(column))], kwargs=[], dyn_args=None, dyn_kwargs=None):
                name = self.names.setdefault(column, f"{len(self.names)}{COLUMN}")
                return nodes.Name(name, "load", lineno=node.lineno)
        raise UserError(f"prompt.template: line {node.lineno}: {COLUMN} takes a name in quotes; {SPELLING}")


def _name_columns(tree: nodes.Template) -> dict[str, str]:
    """The columns that the template calls, by the names that stand there now."""
    named = _ColumnNames()
    named.visit(tree)
    return {name: column for column, name in named.names.items()}


def _has_macro(tree: nodes.Template, name: str) -> bool:
    return any(macro.name == name for macro in tree.find_all(nodes.Macro))


def _change_written(tree: nodes.Template, written: Callable[[str], str]) -> None:
    """Changes what stands outside of expressions, and texts that are printed or named as they are."""
    for plain in tree.find_all(nodes.TemplateData):
        plain.data = written(plain.data)
    waiting: list[nodes.Node] = [part for output in tree.find_all(nodes.Output) for part in output.nodes]
    waiting += [assigned.node for assigned in tree.find_all(nodes.Assign)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, nodes.Const) and isinstance(node.value, str):
            node.value = written(node.value)
        elif isinstance(node, nodes.Add | nodes.Concat | nodes.CondExpr):
            waiting += node.iter_child_nodes(exclude=("test",))


def _as_text(node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, "string", [], [], None, None, lineno=node.lineno)


def _is_printed(tree: nodes.Template, name: str) -> bool:
    """Whether the name stands anywhere but before the brackets of a call."""
    called = sum(call.node == nodes.Name(name, "load") for call in tree.find_all(nodes.Call))
    return sum(found.name == name for found in tree.find_all(nodes.Name)) > called


def _rename_self(tree: nodes.Template) -> str:
    """Gives all of a name that Jinja keeps for itself another one, which no template writes."""
    other = "0self"
    for found in tree.find_all(nodes.Name):
        if found.name == "self":
            found.name = other
    return other


def _refuse_one_name_for_two(tree: nodes.Template) -> None:
    """Python, which a template becomes, takes names that differ in form alone, such as `ﬁ` and `fi`, for one."""
    seen: dict[str, str] = {}
    for found in tree.find_all(nodes.Name):
        first = seen.setdefault(unicodedata.normalize("NFKC", found.name), found.name)
        if first != found.name:
            raise UserError(f"prompt.template: the names {first!r} and {found.name!r} differ in form alone; rename one")
