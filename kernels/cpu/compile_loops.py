"""Compiles every loop into the cache, so that no run has to wait for it: `python -m kernels.cpu.compile_loops`."""

import importlib
import sys
import time

from kernels.cpu.language import loop_cache, openmp
from kernels.cpu.language.loop_cache import NAMES
from kernels.processor import PROCESSOR


def main() -> None:
    """In one line, as it goes: for which processor, which loops, how long, and what is left to torch."""
    if not openmp.available():
        _say("nothing is compiled here: torch does it all, more slowly\n")
        return
    started = time.perf_counter()
    _say(f"compiling for {PROCESSOR}:")
    loop_cache.make(list(NAMES), lambda name: _say(f" {name.removeprefix('kernels.')}"))
    _say(f"; {time.perf_counter() - started:.0f} s\n")
    for name, why in loop_cache.left_loops().items():
        _say(f"{loop_cache.of_left(name, why)}\n")


def child() -> None:
    """Compiles the loops that are named by the arguments behind the first; says of each when it is made."""
    assert openmp.available()
    for name in sys.argv[2:]:
        importlib.import_module(name).LOOP.compile()
        loop_cache.note_as_made(name)
        _say(f"{name}\n")


def _say(words: str) -> None:
    sys.stdout.write(words)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
