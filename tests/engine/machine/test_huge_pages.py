"""Weights that are copied out of mapped files."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from engine.machine.huge_pages import drop_file_pages, leave_files

ROWS = 600  # of 1,024 float32 values: more than a large page, so that the copies are in such

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")


def mapped(file: Path) -> bool:
    return str(file) in Path("/proc/self/maps").read_text()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    draw = torch.Generator().manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_file({name: torch.randn(ROWS, 1024, generator=draw) for name in "abcd"}, path)
    return path


def load(file: Path, names: str) -> nn.ParameterDict:
    with safe_open(file, framework="pt") as weights:
        parameters = {name: nn.Parameter(weights.get_tensor(name), requires_grad=False) for name in names}
    return nn.ParameterDict(parameters)


def test_the_rest_of_a_file_is_copied_and_the_file_let_go(file: Path) -> None:
    model = load(file, "a")
    model["tied"] = model["a"]
    before = model["a"].clone()
    assert mapped(file)
    assert leave_files([model]) == ROWS * 1024 * 4
    assert not mapped(file)
    assert torch.equal(model["a"], before)
    assert model["tied"].data_ptr() == model["a"].data_ptr()


def test_a_file_in_use_stays(file: Path) -> None:
    model = load(file, "abc")
    place = model["a"].data_ptr()
    assert leave_files([model]) == 0
    assert mapped(file)
    assert model["a"].data_ptr() == place


def test_dropped_pages_are_read_again(file: Path) -> None:
    model = load(file, "abcd")
    before = {name: weight.clone() for name, weight in model.items()}
    drop_file_pages()
    assert all(torch.equal(model[name], before[name]) for name in before)
