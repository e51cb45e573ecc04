"""A folder with packages of our names hides none of ours from `trunkline`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import trunkline

ROOT = Path(__file__).parents[1]
ASK = "import tasks, flows; print(tasks.__file__); print(flows.__file__)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in trunkline.PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    return tmp_path


def python(folder: Path, program: str, *more_path: Path) -> subprocess.CompletedProcess[str]:
    """The working directory comes first, as in a script that lies there."""
    path = os.pathsep.join(map(str, [*more_path, ROOT]))
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def test_the_folder_would_hide_ours(folder: Path) -> None:
    assert python(folder, ASK).stdout.split() == [str(folder / name / "__init__.py") for name in ("tasks", "flows")]


def test_what_is_public_is_ours(folder: Path) -> None:
    done = python(folder, f"from trunkline import load_job, UserError; {ASK}; print(load_job.__module__)")
    ours = [str(ROOT / name / "__init__.py") for name in ("tasks", "flows")]
    assert done.stdout.split() == [*ours, "tasks.job.job_file"], done.stderr


def test_the_command_is_ours(folder: Path) -> None:
    program = "import sys, trunkline; sys.argv = ['trunkline', 'plan', 'nowhere.yaml']; trunkline.main()"
    done = python(folder, program, folder)
    assert done.stderr == "trunkline: nowhere.yaml: cannot be read (No such file or directory)\n"


@pytest.mark.parametrize("name", trunkline.PACKAGES)
def test_a_package_from_elsewhere_is_told_in_one_line(folder: Path, name: str) -> None:
    said = f"{name} was imported from {folder / name}, but Trunkline's own is in {ROOT}; import trunkline first\n"
    done = python(folder, f"import {name}, trunkline; trunkline.main()")
    assert (done.returncode, done.stderr) == (2, f"trunkline: {said}")
    done = python(folder, f"import {name}\nfrom trunkline import load_job")
    assert done.stderr.endswith(f"ImportError: {said}")


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'unknown'"):
        trunkline.unknown  # noqa: B018


def test_importing_it_loads_nothing_heavy() -> None:
    done = python(ROOT, "import sys, trunkline; print(sorted({'flows', 'prefect', 'torch'} & set(sys.modules)))")
    assert done.stdout == "[]\n"
