"""What the kernels become on sm_80, sm_90 and gfx942, compiled with no device at hand."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kernels.gpu.compile_report import DIMS
from kernels.gpu.tuning.attention_config import ATTENTION, attention_candidates
from kernels.gpu.tuning.device_limits import LIMITS

ROOT = Path(__file__).parents[3]
# Of heads.
SIZES = {"two tiles": 96, "one tile": 128}
# What the wide tile's products, and so most of the work, must be made of.
MATRIX = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "gfx942": "v_mfma"}


def report(folder: Path, *arguments: str) -> list[str]:
    """Its lines, from a process of its own: this one defines kernels for the interpreter."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "kernels.gpu.compile_report", *arguments],
        env=kept | {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def compiled(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in report(folder, "--json", *arguments)]


def hold(row: dict[str, Any]) -> None:
    arch = row["arch"]
    assert row["spilled"] == 0, row
    assert row["shared"] <= LIMITS[arch].shared_program, row
    assert row["programs"] >= 1, row


@pytest.fixture(scope="module")
def of_two_sizes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, Any]]]:
    """By architecture, what attention becomes in `SIZES`, which one process compiles."""
    return cache(lambda arch: compiled(tmp_path_factory.mktemp("compiled"), arch, *map(str, SIZES.values())))


@pytest.mark.parametrize("dim", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    "arch", [pytest.param(name, marks=() if name == "sm_90" else pytest.mark.nightly) for name in MATRIX]
)
def test_configurations_fit_and_use_matrix_units(
    arch: str, dim: int, of_two_sizes: Callable[[str], list[dict[str, Any]]]
) -> None:
    rows = [row for row in of_two_sizes(arch) if row["name"].startswith(f"{arch} | {dim} | ")]
    assert len(rows) == len(ATTENTION[arch][dim])
    for row, config in zip(rows, ATTENTION[arch][dim], strict=True):
        hold(row)
        assert row["matrix"][MATRIX[arch]] > 0, row
        assert row["programs"] >= config.programs, row


@pytest.mark.nightly
@pytest.mark.parametrize("arch", MATRIX)
def test_the_widest_heads_in_32_bits_fit_any_device(arch: str, tmp_path: Path) -> None:
    """Ada and Blackwell's cards have 99 KiB a program, the least that kernels are compiled for but for AMD's."""
    (row,) = compiled(tmp_path, arch, "256", "--float32")
    hold(row)
    assert row["shared"] <= 99 * 1024, row


@pytest.mark.nightly
@pytest.mark.parametrize("arch", MATRIX)
def test_every_configuration_and_kernel_as_the_page_says(arch: str, tmp_path: Path) -> None:
    rows = compiled(tmp_path, arch)
    configs = [config for dim in DIMS for config in attention_candidates(arch, dim)]
    for row in rows:
        hold(row)
    for row, config in zip(rows, configs, strict=False):
        assert row["matrix"][MATRIX[arch]] > 0, row
        assert row["programs"] >= config.programs, row
    others = {row["name"].split(" | ")[1]: row["matrix"] for row in rows[len(configs) :]}
    assert len(others) == 20
    for name, matrix in others.items():
        assert any(matrix.values()) == name.startswith(("adapters", "attention", "W4A16", "W8A8")), name
    page = (ROOT / "docs" / "kernels.md").read_text()
    assert [line for line in report(tmp_path, arch) if line not in page] == [], (
        "run python -m kernels.gpu.compile_report"
    )
