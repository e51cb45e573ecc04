"""Who may import whom."""

import ast
import importlib.metadata
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("kernels", "engine", "tasks", "flows")
MODULES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]
PLANNING = (
    "block_pool",
    "config",
    "cost",
    "errors",
    "groups",
    "model_shape",
    "plan",
    "planner",
    "prefix_tree",
    "request",
    "sampling_params",
    "scheduler",
    "scheduler_output",
)


def imported(path: Path) -> set[str]:
    """All module names that a file imports, dotted, those inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its layer"
            assert node.module is not None
            names.add(node.module)
    return names


def top_level(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    above = set(LAYERS[LAYERS.index(layer) + 1 :]) | {"examples", "tests", "trunkline"}
    assert not top_level(path) & above


@pytest.mark.parametrize("path", sorted((ROOT / "engine").rglob("*.py")), ids=name_of)
def test_the_engine_knows_neither_prefect_nor_duckdb(path: Path) -> None:
    assert not top_level(path) & {"prefect", "duckdb", "pyarrow"}


@pytest.mark.parametrize("path", sorted((ROOT / "flows").rglob("*.py")), ids=name_of)
def test_sql_is_for_tasks_alone(path: Path) -> None:
    assert not top_level(path) & {"sql", "duckdb"}


@pytest.mark.parametrize("module", PLANNING)
def test_planning_needs_numpy_alone(module: str) -> None:
    """So that a simulator, or a test without torch, drives the very same code."""
    seen: set[str] = set()
    waiting = [f"engine.{module}"]
    while waiting:
        name = waiting.pop()
        seen.add(name)
        for dotted in imported(ROOT / f"{name.replace('.', '/')}.py"):
            package = dotted.partition(".")[0]
            if package in ("engine", "kernels"):
                waiting += [dotted] if dotted not in seen else []
            else:
                assert package == "numpy" or package in sys.stdlib_module_names, f"{name} imports {dotted}"


def test_kernels_does_not_pass_for_the_distribution_of_that_name() -> None:
    """transformers probes `kernels` by import and takes a version below its minimum for absence."""
    assert (ROOT / "kernels" / "__init__.py").read_text() == '__version__ = "0.0.0"\n'
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("kernels")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_hides_one_of_the_standard_library(path: Path) -> None:
    assert path.name not in {"types.py", "queue.py", "tokenize.py"}
