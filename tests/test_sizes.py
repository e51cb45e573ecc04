"""How long files and functions may be: CONTRIBUTING's habits, counted."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("engine", "examples", "flows", "kernels", "tasks", "tests")
FILE_LINES, FUNCTION_LINES, PARAMETERS = 350, 60, 12


def too_long(text: str, where: str) -> Iterator[str]:
    lines = len(text.splitlines())
    if lines > FILE_LINES:
        yield f"{where}: {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield f"{where}: {node.name} has {lines} lines"
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if len(given) > PARAMETERS and (parameters := num_parameters(given)) > PARAMETERS:
                yield f"{where}: {node.name} has {parameters} parameters"


def num_parameters(given: list[ast.arg]) -> int:
    """Without those that a GPU's compiler takes, and the options of a command, each of which a person may set."""
    annotations = [ast.unparse(one.annotation) if one.annotation is not None else "" for one in given]
    if any("typer.Option" in one for one in annotations):
        return 0
    return len([one for one in annotations if one != "tl.constexpr"])


def test_files_and_functions_fit_on_a_few_screens() -> None:
    paths = [ROOT / "trunkline.py", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))]
    assert [found for path in paths for found in too_long(path.read_text(), str(path.relative_to(ROOT)))] == []


def test_what_is_too_long_is_seen() -> None:
    many = ", ".join(f"p{number}" for number in range(13))
    text = f"def wide({many}): pass\n" + "def long():\n" + "    pass\n" * 60 + "\n" * 300
    assert list(too_long(text, "a.py")) == [
        "a.py: 362 lines",
        "a.py: wide has 13 parameters",
        "a.py: long has 61 lines",
    ]
    compiled = many.replace("p12", "COLUMNS: tl.constexpr")
    assert list(too_long(f"def kernel({compiled}): pass", "a.py")) == []
