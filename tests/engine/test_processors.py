"""The loops as lesser processors run them, and torch in their place: in processes of their own, held to this one's."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llvmlite import binding

from kernels.cpu.language import loop_cache, openmp
from kernels.cpu.language.loop_cache import NAMES
from tests.engine.answers import PRECISIONS, Forks, answers

ROOT = Path(__file__).parents[2]
# By processor: what this one must be able to do to run its code, and what torch calls as much.
LESSER = {"nehalem": ("sse4.2", "default"), "haswell": ("avx2", "avx2")}
KERNELS = ("attention", "matmul", "language/test_vectors.py", "language/test_transpose.py", "test_loops.py")
# Of a label's log-likelihood, which is about -40. A last bit of a score moves an activation to its next step; where no
# instruction multiplies narrow numbers, activations are not rounded at all.
APART = {"float32 none": 1e-4, "bfloat16 none": 0.25, "float32 int8": 0.4, "bfloat16 int8": 0.4}


# Those that a change waits for; `make nightly` takes them all.
MARKS: dict[str, Any] = {"kernels.cpu.matmul.matmul": (), "kernels.cpu.attention.cpu_attention": ()}


@pytest.fixture(scope="module")
def ours(tiny_model: Path) -> dict[str, Any]:
    return answers(str(tiny_model))


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("answers"), plain()) as forks:
        yield forks


def plain() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_CPU")}


def as_processor(name: str) -> dict[str, str]:
    """The environment of what runs as on that one."""
    features = binding.get_host_cpu_features()
    needed, aten = LESSER[name]
    if not binding.get_process_triple().startswith("x86_64") or not features.get(needed):
        pytest.skip(f"this processor cannot run what is compiled for {name}")
    return {"NUMBA_CPU_NAME": name, "ATEN_CPU_CAPABILITY": aten}


def hold(made: dict[str, Any], ours: dict[str, Any]) -> None:
    assert made.keys() == ours.keys() == {" ".join(precision) for precision in PRECISIONS}
    for precision, wanted in ours.items():
        pairs = zip(made[precision]["labels"], wanted["labels"], strict=True)
        apart = [abs(a - b) for row, wanted_row in pairs for a, b in zip(row, wanted_row, strict=True)]
        assert max(apart) < APART[precision], precision
    assert made["float32 none"]["texts"] == ours["float32 none"]["texts"]


@pytest.mark.nightly
@pytest.mark.parametrize("name", LESSER)
def test_kernels_are_their_twins(name: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", *(f"tests/kernels/cpu/{kernel}" for kernel in KERNELS)]
    done = subprocess.run(
        command, cwd=ROOT, env=plain() | as_processor(name), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


@pytest.mark.parametrize("name", [pytest.param("nehalem", marks=pytest.mark.nightly), "haswell"])
def test_answers_in_each_precision(name: str, tiny_model: Path, ours: dict[str, Any], forks: Forks) -> None:
    made = forks.answers(tiny_model, **as_processor(name))
    hold(made, ours)
    assert {precision: answer["fused"] for precision, answer in made.items()} == dict.fromkeys(made, True)


@pytest.mark.parametrize("without", ["no-openmp", "no-numba"])
def test_torch_answers_where_nothing_is_compiled(
    without: str, tiny_model: Path, ours: dict[str, Any], forks: Forks
) -> None:
    made = forks.answers(tiny_model, without)
    hold(made, ours)
    assert not any(answer["fused"] for answer in made.values())


@pytest.mark.skipif(not openmp.available(), reason="this torch has no libgomp: nothing is compiled")
@pytest.mark.parametrize("left", [pytest.param(name, marks=MARKS.get(name, pytest.mark.nightly)) for name in NAMES])
def test_torch_takes_the_place_of_a_loop_that_was_left(
    left: str, tiny_model: Path, ours: dict[str, Any], tmp_path: Path, forks: Forks
) -> None:
    loop_cache.left_to_torch()  # all are compiled now
    made = loop_cache.folder()
    copy = tmp_path / "loops" / made.name
    shutil.copytree(made, copy)
    (copy / f"{left}.made").unlink()
    (copy / f"{left}.left").write_text("LLVM ERROR: for a test")
    hold(forks.answers(tiny_model, TRUNKLINE_CACHE=str(tmp_path)), ours)
