"""Compiled loops on disk, made in a child process: what ends a compiler, or keeps it busy for good, ends no program.

LLVM aborts the process that it runs in where it finds no instruction or no symbol. So no loop is used that a child has
not made and linked. One that it could not make is left to torch, until somebody compiles again: `python -m
kernels.compile_loops`.
"""

import fcntl
import hashlib
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Timer
from typing import Any

from kernels.cpu.language.jit import cfunc, config, numba_version, types
from kernels.processor import PROCESSOR

_ROOT = Path(__file__).parents[3]


def _files_with_a_loop(pattern: str = r"^LOOP = Loop\(") -> list[Path]:
    files = sorted((_ROOT / "kernels" / "cpu").rglob("*.py"))
    return [file for file in files if re.search(pattern, file.read_text(), re.MULTILINE)]


def _names(files: list[Path]) -> tuple[str, ...]:
    return tuple(".".join(file.relative_to(_ROOT).with_suffix("").parts) for file in files)


# Modules that have a loop, in the order in which they are compiled; and those of them that make their sums in order,
# which few need: they are compiled when one of them is asked for.
NAMES = _names(_files_with_a_loop())
IN_ORDER = _names(_files_with_a_loop(r"^LOOP = Loop\(.*in_order=True\)"))
# Of one loop, the longest of which takes ten seconds of a core that is its own.
LIMIT_SECONDS = 600.0

# numba compiles for the processor that vectors are chosen for.
config.CPU_NAME, config.CPU_FEATURES = PROCESSOR.name, PROCESSOR.features

log = logging.getLogger(__name__)


@cache
def left_to_torch(*, in_order: bool = False) -> dict[str, str]:
    """By loop that is not compiled here, why; compiles first what nobody has tried, and tells of both.

    Of those `IN_ORDER`, or of all the others.
    """
    with _locked(folder()):
        wanted = [name for name in NAMES if (name in IN_ORDER) == in_order]
        missing = [name for name in wanted if _note(name, "made") is None and _note(name, "left") is None]
        if missing:
            log.warning("compiling %d loops for %s: about half a minute, once", len(missing), PROCESSOR)
            make(missing)
    left = {name: why for name, why in left_loops().items() if name in wanted}
    for name, why in left.items():
        log.warning("%s", of_left(name, why))
    return left


def of_left(name: str, why: str) -> str:
    return (
        f"{name} is not compiled ({why}): torch does its work, more slowly; "
        "`python -m kernels.cpu.compile_loops` tries again"
    )


def left_loops() -> dict[str, str]:
    """Of those that were tried."""
    return {name: why for name in NAMES if (why := _note(name, "left")) is not None}


def make(names: list[str], tell: Callable[[str], None] = lambda _: None, limit: float = LIMIT_SECONDS) -> None:
    """Compiles loops in children, which get `limit` seconds for each; `tell` hears of each that is made.

    The first one that a child leaves unmade is what ended it; another child goes on with the rest.
    """
    for name in names:
        for kind in ("made", "left"):
            (folder() / f"{name}.{kind}").unlink(missing_ok=True)
    while names:
        why = _run_child(names, tell, limit)
        names = [name for name in names if _note(name, "made") is None]
        if names:
            (folder() / f"{names[0]}.left").write_text(why)
            names = names[1:]


def _run_child(names: list[str], tell: Callable[[str], None], limit: float) -> str:
    """Why it ended, in a line. It is in a session of its own: what stops the program leaves it what it is at."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); from kernels.cpu import compile_loops; compile_loops.child()"
    command = [sys.executable, "-P", "-c", code, str(_ROOT), *names]
    environment = os.environ | {"TRUNKLINE_CACHE": str(_home())}
    # What it says on stderr goes to a file, because nobody would empty a pipe meanwhile.
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=environment,
            start_new_session=True,
        ) as child:
            assert child.stdout is not None
            timer = _killing(child, limit)
            for line in child.stdout:
                timer.cancel()
                timer = _killing(child, limit)
                tell(line.strip())
            is_late = not timer.is_alive()
            timer.cancel()
        if is_late:
            return f"more than {limit:.0f} s"
        said.seek(0)
        words = [line.strip() for line in said if line.strip()]
    fatal = [line for line in words if line.startswith("LLVM ERROR")]
    return (fatal or words or [f"exit code {child.returncode}"])[-1][:200]


def _killing(child: "subprocess.Popen[str]", seconds: float) -> Timer:
    timer = Timer(seconds, child.kill)
    timer.daemon = True
    timer.start()
    return timer


def compile_function(function: Callable[..., None], fastmath: set[str]) -> Any:
    """numba's callback, from its cache on disk or compiled now, in this process: see `left_to_torch`.

    numba knows a compiled loop by its own file; what it takes from others is told by the folder's name.
    """
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder())
    try:
        signature = types.void(types.CPointer(types.int64))
        return cfunc(signature, fastmath=fastmath, error_model="numpy", cache=True)(function)
    finally:
        config.CACHE_DIR = before


def note_as_made(name: str) -> None:
    """In the child. Links once more: only then LLVM says of the loop before that a symbol was missing."""
    cfunc(types.void())(lambda: None)
    (folder() / f"{name}.made").touch()


@cache
def folder() -> Path:
    """Of the loops of these sources for this processor; a temporary one where the cache cannot be written."""
    made = _home() / "loops" / cache_key()
    made.mkdir(parents=True, exist_ok=True)
    return made


@cache
def _home() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = Path(os.environ.get("TRUNKLINE_CACHE") or Path(base) / "trunkline")
    try:
        (home / "loops").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home / "loops"):
            return home
    except OSError:
        _kept.append(tempfile.TemporaryDirectory(prefix="trunkline-", ignore_cleanup_errors=True))
        return Path(_kept[-1].name)


_kept: list[Any] = []


def cache_key() -> str:
    """Of all compiled loops: their sources, what compiles them, and the processor that they are compiled for."""
    made_by = (platform.python_version(), numba_version, PROCESSOR.triple, PROCESSOR.name, PROCESSOR.features)
    parts = [file.read_bytes() for file in sources()]
    return hashlib.sha256(b"".join([*parts, *(str(part).encode() for part in made_by)])).hexdigest()[:12]


@cache
def sources() -> tuple[Path, ...]:
    """The loops' modules and all that they import of `kernels`, which is what loops are made of."""
    found: set[Path] = set()
    waiting = _files_with_a_loop()
    while waiting:
        file = waiting.pop()
        if file.exists() and file not in found:
            found.add(file)
            imports = re.findall(r"^from (kernels[\w.]*) import (.+)$", file.read_text(), re.MULTILINE)
            named = [f"{module}.{name.strip()}" for module, names in imports for name in names.split(",")]
            waiting += [_file_of(name) for name in [*(module for module, _ in imports), *named]]
    return tuple(sorted(found))


def _file_of(module: str) -> Path:
    return _ROOT / f"{module.replace('.', '/')}.py"


def _note(name: str, kind: str) -> str | None:
    try:
        return (folder() / f"{name}.{kind}").read_text()
    except OSError:
        return None


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """One process compiles; the others wait for what it makes."""
    with (place / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
