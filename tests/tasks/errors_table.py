"""The tables of `docs/troubleshooting.md`, made from the code: `python -m tests.tasks.errors_table` rewrites them.

A row's error is a constant that is its own name, with a docstring below it; an error class has its own. Both end with
`Cure:`, what a person does, or for a class that another error takes the place of, with `Seen as:`.
"""

import ast
import builtins
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
FLOORS = ("engine", "flows", "kernels", "tasks")


@dataclass(frozen=True)
class Documented:
    """An error of ours, why it comes, and what to do; either is empty where its docstring does not say so."""

    name: str
    path: str
    why: str
    cure: str
    base: str = ""


@cache
def modules() -> dict[str, ast.Module]:
    """All our modules by path, from the root."""
    files = (file for floor in FLOORS for file in sorted((ROOT / floor).rglob("*.py")))
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text()) for file in files}


def row_errors() -> list[Documented]:
    """By name."""
    return sorted((one for path in modules() for one in _constants(path)), key=lambda one: one.name)


def error_classes() -> list[Documented]:
    """Exceptions that our code raises, by name, without private ones."""
    found = {one.name: one for path in modules() for one in _classes(path) if _is_exception(one, bases())}
    # A class that others are made of, and nobody calls, is met in them alone.
    abstract = {one.base for one in found.values()} - called()
    return sorted((one for one in found.values() if one.name not in abstract), key=lambda one: one.name)


@cache
def bases() -> dict[str, str]:
    """The first base of each of our classes, by name."""
    return {one.name: one.base for path in modules() for one in _classes(path)}


@cache
def called() -> set[str]:
    """Names that are called, or raised, anywhere."""
    nodes = [node for module in modules().values() for node in ast.walk(module)]
    names = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return names | {node.exc.id for node in nodes if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name)}


def tables() -> dict[str, str]:
    """By the name of their markers."""
    rows = (f"| `{one.name}` | {one.why} | {one.cure} | {_files(_users(one))} |" for one in row_errors())
    classes = (f"| `{one.name}` | {one.why} | {one.cure} | {_files([one.path])} |" for one in error_classes())
    return {
        "rows": "\n".join(["| `error_type` | why | what to do | files |", "|---|---|---|---|", *rows]),
        "classes": "\n".join(["| class | why | what to do | file |", "|---|---|---|---|", *classes]),
    }


def written(page: str, name: str) -> str:
    """What stands between the markers of this name. Raises ValueError where there are none."""
    begin, end = _markers(name)
    return page[page.index(begin) + len(begin) : page.index(end)].strip()


def rewrite() -> None:
    page = PAGE.read_text()
    for name, table in tables().items():
        begin, end = _markers(name)
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(page)


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def _constants(path: str) -> Iterator[Documented]:
    body = modules()[path].body
    for node, below in zip(body, [*body[1:], None], strict=True):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)) if name == value:
                yield Documented(name, path, *_parts(_text(below)))


def _text(node: ast.stmt | None) -> str:
    match node:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return text
    return ""


def _classes(path: str) -> Iterator[Documented]:
    for node in modules()[path].body:
        match node:
            case ast.ClassDef(name=name, bases=named) if not name.startswith("_"):
                base = named[0].id if named and isinstance(named[0], ast.Name) else ""
                yield Documented(name, path, *_parts(ast.get_docstring(node) or ""), base)


def _is_exception(one: Documented, bases: dict[str, str]) -> bool:
    """Whether it comes of an exception, which is Python's own or, by its name, a library's."""
    base = one.base
    while base in bases:
        base = bases[base]
    known = getattr(builtins, base, None)
    return issubclass(known, BaseException) if isinstance(known, type) else base.endswith("Error")


def _parts(docstring: str) -> tuple[str, str]:
    """Why, and what to do, each as one line."""
    why, cure = docstring, ""
    if match := re.search(r"\n\n(Cure: |Seen as: )", docstring):
        why, cure = docstring[: match.start()], docstring[match.end() :]
        cure = f"{cure[:1].upper()}{cure[1:]}" if match[1] == "Cure: " else f"Seen as {cure}"
    return " ".join(why.split()), " ".join(cure.split())


def _users(one: Documented) -> list[str]:
    """Files that make this error: they use its constant otherwise than to import it, or its text."""
    found = [path for path, module in modules().items() if any(_uses(node, one.name) for node in ast.walk(module))]
    return [path for path in found if path != one.path or len(found) == 1] or [one.path]


def _uses(node: ast.AST, name: str) -> bool:
    match node:
        case ast.Name(id=used, ctx=ast.Load()):
            return used == name
        case ast.Call(args=args):
            return any(isinstance(argument, ast.Constant) and argument.value == name for argument in args)
    return False


def _files(paths: list[str]) -> str:
    return ", ".join(f"`{path}`" for path in paths)


if __name__ == "__main__":
    rewrite()
