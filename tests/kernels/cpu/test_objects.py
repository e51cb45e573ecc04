"""Every loop compiled for a table of processors: its object asks for nothing that the process has not."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from llvmlite import binding

from kernels.processor import processor_of
from tests.kernels.cpu.loop_objects import object_for, undefined_symbols

ROOT = Path(__file__).parents[3]
LINUX, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
# Processors with the same vectors have the same modules, which are made once.
ALIKE = [
    (LINUX, ("nehalem",)),
    (LINUX, ("haswell", "znver3")),
    (LINUX, ("skylake-avx512",)),
    (LINUX, ("cascadelake",)),
    (LINUX, ("znver4", "sapphirerapids")),
    (ARM, ("generic", "neoverse-n1", "apple-m1")),
]
# Of numba's runtime and of Python, by which a loop would say that an allocation failed.
PREFIXES = ("NRT_", "numba_", "Py")
SYMBOLS = {"floor", "fmod", "log2f", "memcpy", "memmove", "memset", "omp_get_num_threads", "omp_get_thread_num"}


@cache
def objects(triple: str, names: tuple[str, ...]) -> dict[str, dict[str, dict[str, list[str]]]]:
    command = [sys.executable, "-m", "tests.kernels.cpu.loop_objects", triple, *names]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
    done = subprocess.run(command, cwd=ROOT, env=plain | {"NUMBA_OPT": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)  # type: ignore[no-any-return]


TABLE = [pytest.param(triple, names, name, id=name) for triple, names in ALIKE for name in names]


@pytest.mark.nightly
@pytest.mark.parametrize(("triple", "names", "name"), TABLE)
def test_nothing_is_asked_for_that_is_not_there(triple: str, names: tuple[str, ...], name: str) -> None:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    processor = processor_of(triple, name)
    for loop, asked in objects(triple, names)[name].items():
        more = {symbol for symbol in asked["undefined"] if not symbol.startswith(PREFIXES)} - SYMBOLS
        assert not more, f"{loop} asks for {more}"
        assert asked["absent"] == [], loop
        if not processor.pairs and not processor.bytes:
            assert asked["intrinsics"] == [], loop
        assert all(name.startswith(("llvm.x86.avx512.", "llvm.x86.avx512bf16.")) for name in asked["intrinsics"])
        if not processor.pairs:
            assert not any("bf16" in name for name in asked["intrinsics"]), loop


def test_a_function_of_the_compilers_own_would_be_seen() -> None:
    """As bfloat16 was once narrowed."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    text = "define bfloat @f(float %x) {\n %y = fptrunc float %x to bfloat\n ret bfloat %y\n}"
    assert undefined_symbols(object_for(text, LINUX, "haswell")) == ["__truncsfbf2"]
    assert undefined_symbols(object_for(text, LINUX, "znver4")) == []
