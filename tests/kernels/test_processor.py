"""What each processor can do, by its name; no table of names says it in the code."""

import os
import subprocess
import sys

import pytest
from llvmlite import binding

from kernels.cpu.language import loop_cache
from kernels.processor import Processor, processor_of

LINUX, ARM, APPLE = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "arm64-apple-macosx"
# Lanes, registers, fma, bfloat16, int8.
TABLE = {
    (LINUX, "nehalem"): (4, 16, False, False, False),
    (LINUX, "haswell"): (8, 16, True, False, False),
    (LINUX, "skylake-avx512"): (16, 32, True, False, False),
    (LINUX, "cascadelake"): (16, 32, True, False, True),
    (LINUX, "znver3"): (8, 16, True, False, False),
    (LINUX, "znver4"): (16, 32, True, True, True),
    (LINUX, "sapphirerapids"): (16, 32, True, True, True),
    (ARM, "generic"): (4, 32, True, False, False),
    (ARM, "neoverse-n1"): (4, 32, True, False, False),
    (APPLE, "apple-m1"): (4, 32, True, False, False),
}


@pytest.mark.parametrize(("target", "expected"), TABLE.items(), ids=lambda value: str(value[1]))
def test_processor_is_known_by_its_name(target: tuple[str, str], expected: tuple[object, ...]) -> None:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    made = processor_of(*target)
    assert (made.lanes, made.registers, made.fuses, made.pairs, made.bytes) == expected


def test_features_are_added_and_taken_away() -> None:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    assert not processor_of(LINUX, "znver4", "-avx512vnni").bytes
    assert processor_of(LINUX, "skylake-avx512", "+avx512vnni").bytes
    assert processor_of(LINUX, "znver4", "-avx512f").lanes == 8
    assert str(processor_of(LINUX, "haswell")) == "haswell: 8 lanes, 16 registers, fma"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"NUMBA_CPU_NAME": "haswell"}, ("haswell", "", 8)),
        ({"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx512f"}, ("haswell", "+avx512f", 16)),
    ],
    ids=["name", "features"],
)
def test_environment_names_another_processor_and_numba_obeys(
    given: dict[str, str], expected: tuple[str, str, int]
) -> None:
    if not binding.get_process_triple().startswith("x86_64"):
        pytest.skip("not an x86 processor")
    name, features, lanes = _asked(given).split("|")
    assert (name, features, int(lanes)) == expected


def _asked(given: dict[str, str]) -> str:
    code = (
        "from kernels.cpu.language import openmp; from kernels.processor import PROCESSOR\n"
        "from numba.core.registry import cpu_target\n"
        "_, name, features = cpu_target.target_context.codegen().magic_tuple()\n"
        "assert (name, features) == (PROCESSOR.name, PROCESSOR.features)\n"
        "print(name, features, PROCESSOR.lanes, sep='|')"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_CPU")} | given
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_cache_of_loops_is_keyed_by_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    here = loop_cache.cache_key()
    lesser = Processor(LINUX, "nehalem", "", 4, 16, fuses=False, pairs=False, bytes=False)
    monkeypatch.setattr(loop_cache, "PROCESSOR", lesser)
    assert loop_cache.cache_key() not in (here, "")
