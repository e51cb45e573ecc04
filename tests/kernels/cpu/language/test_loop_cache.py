"""What a compiler does to the process that it runs in is done to a child, and its loop is left to torch."""

from pathlib import Path

import pytest

from kernels.cpu.language import loop_cache, openmp

pytestmark = pytest.mark.skipif(not openmp.available(), reason="this torch has no libgomp: nothing is compiled")

ROOT = Path(__file__).parents[4]
GOOD = """
from typing import NamedTuple
from kernels.cpu.language.arguments import reader
from kernels.cpu.language.openmp import Loop, share
class FillArguments(NamedTuple):
    rows: int
    size: int
_read = reader(FillArguments)
def _fill(arguments):
    share(_read(arguments).rows)
LOOP = Loop(_fill, FillArguments)
"""
# As bfloat16 was narrowed once, where no instruction does it: by a function that nobody has.
UNLINKED = """
from typing import NamedTuple
from numba import types
from kernels.cpu.language.openmp import Loop
class CallArguments(NamedTuple):
    rows: int
    size: int
absent = types.ExternalFunction("function_that_nobody_has", types.int64())
def _call(arguments):
    absent()
LOOP = Loop(_call, CallArguments)
"""
SLOW = "import time\ntime.sleep(600)\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and three modules that a child finds."""
    for name, text in (("good", GOOD), ("unlinked", UNLINKED), ("slow", SLOW)):
        (tmp_path / f"{name}_loop.py").write_text(text)
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    _forget()
    yield tmp_path
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    for known in (loop_cache.folder, loop_cache._home, loop_cache.left_to_torch):
        known.cache_clear()


def _notes() -> dict[str, str]:
    return {file.name: file.read_text() for file in loop_cache.folder().iterdir() if file.suffix in (".made", ".left")}


def test_what_cannot_be_linked_is_left_and_the_rest_is_made(home: Path) -> None:
    told: list[str] = []
    loop_cache.make(["unlinked_loop", "good_loop"], told.append)
    reason = "LLVM ERROR: Symbol not found: function_that_nobody_has"
    assert _notes() == {"unlinked_loop.left": reason, "good_loop.made": ""}
    assert told == ["good_loop"]


def test_what_takes_too_long_is_left(home: Path) -> None:
    loop_cache.make(["slow_loop"], limit=1.0)
    assert _notes() == {"slow_loop.left": "more than 1 s"}


def test_compiling_again_forgets_what_was_left(home: Path) -> None:
    (loop_cache.folder() / "good_loop.left").write_text("once")
    loop_cache.make(["good_loop"])
    assert _notes() == {"good_loop.made": ""}


def test_what_was_left_is_told_once_and_its_kernel_is_torchs(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop_cache, "NAMES", ("good_loop", "unlinked_loop"))
    assert loop_cache.left_to_torch() == {
        "unlinked_loop": "LLVM ERROR: Symbol not found: function_that_nobody_has",
    }
    loop_cache.left_to_torch()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0].startswith("compiling 2 loops for ")
    assert told[1].startswith("unlinked_loop is not compiled (LLVM ERROR: ")


def test_a_cache_that_cannot_be_written_is_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("TRUNKLINE_CACHE", str(home / "file"))
    _forget()
    assert home not in loop_cache.folder().parents
    loop_cache.make(["good_loop"])
    assert _notes() == {"good_loop.made": ""}


def test_loops_are_made_of_what_their_modules_import() -> None:
    """And of nothing else: an edit of a benchmark, or of a GPU's kernel, compiles no loop again."""
    names = {file.relative_to(ROOT).as_posix() for file in loop_cache.sources()}
    assert {"kernels/cpu/matmul/matmul.py", "kernels/cpu/language/vectors.py", "kernels/processor.py"} <= names
    assert not [name for name in names if name.startswith("kernels/gpu/")]
    assert "kernels/cpu/compile_loops.py" not in names
