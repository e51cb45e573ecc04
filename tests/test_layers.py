"""Who may import whom: CONTRIBUTING's table, held in both directions."""

import ast
import importlib.metadata
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("kernels", "engine", "tasks", "flows")
MODULES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]
NUMPY_ALONE = ("engine/planning", "engine/scheduling")
OPTIONAL = {"flash_attn", "flashinfer"}  # a benchmark's peers
ABOVE_ALL = {"examples", "tests", "trunkline"}
# What loads a model imports `cpu` and `gpu`, which import what they have in common from beside it.
TO_PARTS = {("engine/forward", "engine/forward/cpu"), ("engine/forward", "engine/forward/gpu")}
ROW = re.compile(r"^\| `([\w/]+)/` \| [^|]+ \| ([^|]+) \|$", re.MULTILINE)


@cache
def imported(path: Path) -> frozenset[str]:
    """All module names that a file imports, dotted, those inside functions too; of `from a import b`, `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its floor"
            assert node.module is not None
            names.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
    return frozenset(names)


def own_files(path: Path) -> list[Path]:
    """Our files that a file imports."""
    files = [ROOT / f"{name.replace('.', '/')}.py" for name in imported(path)]
    return [file for file in files if file.is_file() and file.is_relative_to(ROOT)]


def libraries(path: Path) -> set[str]:
    own = {*FLOORS, *ABOVE_ALL, "sql"}
    return {name.partition(".")[0] for name in imported(path)} - sys.stdlib_module_names - own


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    """`engine/loop` of engine/loop/engine.py; `engine` of engine/config.py."""
    return "/".join(path.relative_to(ROOT).parts[:-1][:2])


def imports_by_room(paths: Iterable[Path]) -> dict[str, set[str]]:
    """As the table writes them: a floor below, a room of the same floor by its last name, a library."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        room = room_of(path)
        found[room] |= libraries(path) - OPTIONAL
        for file in own_files(path):
            floor, _, name = room_of(file).partition("/")
            if floor != room.partition("/")[0]:
                found[room].add(floor)
            elif room_of(file) != room and name:
                found[room].add(name)
    return found


def table() -> dict[str, set[str]]:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    return {room: set(cell.split(", ")) - {"-"} for room, cell in ROW.findall(page)}


@pytest.mark.parametrize("room", sorted({room_of(path) for path in MODULES}))
def test_a_room_imports_what_the_table_says(room: str) -> None:
    """No more, so that floors hold; and no less, so that the table tells the truth."""
    assert imports_by_room(path for path in MODULES if room_of(path) == room).get(room, set()) == table()[room]


def test_the_table_has_no_room_too_many() -> None:
    assert set(table()) == {room_of(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    floor = path.relative_to(ROOT).parts[0]
    above = set(FLOORS[FLOORS.index(floor) + 1 :]) | ABOVE_ALL
    assert not {name.partition(".")[0] for name in imported(path)} & above


@pytest.mark.parametrize("floor", FLOORS)
def test_no_circle_between_folders(floor: str) -> None:
    """A floor's own files are below its rooms, but in `tasks`, where they are the steps and so above."""
    edges: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        for file in own_files(path):
            here, there = name_of(path.parent), name_of(file.parent)
            if here != there and (here, there) not in TO_PARTS:
                edges[here].add(there)
    order: list[str] = []

    def visit(room: str, trail: tuple[str, ...]) -> None:
        assert room not in trail, " imports ".join([*trail[trail.index(room) :], room])
        if room not in order:
            for other in sorted(edges[room]):
                visit(other, (*trail, room))
            order.append(room)

    for room in sorted(edges):
        if room.startswith(floor):
            visit(room, ())


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) in NUMPY_ALONE], ids=name_of)
def test_planning_and_scheduling_need_numpy_alone(path: Path) -> None:
    """So that a simulator, or a test without torch, drives the very same code."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        seen.add(file)
        assert libraries(file) <= {"numpy"}, f"{name_of(file)} imports {libraries(file)}"
        waiting += [other for other in own_files(file) if other not in seen]


@pytest.mark.parametrize("path", sorted((ROOT / "flows").rglob("*.py")), ids=name_of)
def test_sql_is_for_tasks_alone(path: Path) -> None:
    assert not {name.partition(".")[0] for name in imported(path)} & {"sql", "duckdb"}


def test_kernels_does_not_pass_for_the_distribution_of_that_name() -> None:
    """transformers probes `kernels` by import and takes a version below its minimum for absence."""
    assert (ROOT / "kernels" / "__init__.py").read_text() == '__version__ = "0.0.0"\n'
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("kernels")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_hides_one_of_the_standard_library(path: Path) -> None:
    assert path.name not in {"types.py", "queue.py", "tokenize.py"}
