"""The built wheel in an environment of its own: by command, from Python and in a worker, whatever the folder holds.

What it depends on is this environment's, without the editable install.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.query import query
from tests.prefect_server import home_with

ROOT = Path(__file__).parents[2]
SOURCES = ("engine", "flows", "kernels", "sql", "tasks", "trunkline.py", "pyproject.toml", "README.md", "LICENSE")
PACKAGES = {"engine", "flows", "kernels", "sql", "tasks", "trunkline.py"}
PROGRAM = """
import sys
from trunkline import UserError, load_job, query, score
report = score(load_job(sys.argv[1]))
import flows, tasks
print(report.published.results, flows.__file__, tasks.__file__)
"""

Run = Callable[..., str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools leaves its own folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "src").mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "src" / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*pip, str(folder), str(folder / "src")], check=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of a new environment with the wheel; a .pth leads to the libraries, and does not read their own .pth."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel]
    subprocess.run(list(map(str, install)), check=True)
    prefect = folder / "bin" / "prefect"
    prefect.write_text(f"#!{python}\nfrom prefect.cli import app\napp()\n")
    prefect.chmod(0o755)
    return folder / "bin"


@pytest.fixture(params=[pytest.param("empty", marks=pytest.mark.nightly), "flows and tasks of its own"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where programs start: a change waits for the folder that would hide our packages."""
    path = tmp_path / "here"
    path.mkdir()
    if request.param != "empty":
        for name in ("flows", "tasks", "engine", "kernels"):
            (path / name).mkdir()
            (path / name / "__init__.py").write_text("raise RuntimeError('the user\\'s own')\n")
    return path


@pytest.fixture
def run(environment: Path, folder: Path, migrated_database: Path, tmp_path: Path) -> Run:
    """Runs a program of the environment in the folder."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PREFECT_API_URL")}
    kept["PREFECT_HOME"] = str(home_with(migrated_database, tmp_path / "prefect"))

    def command(program: str, *arguments: object, **variables: str) -> str:
        given = [str(environment / program), *map(str, arguments)]
        done = subprocess.run(given, cwd=folder, env=kept | variables, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"{given}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return command


def test_the_wheel_holds_the_packages_and_one_module(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.partition("/")[0] for name in archive.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == PACKAGES


def test_the_wheel_holds_every_module_and_every_statement(wheel: Path) -> None:
    """Packages are found, not listed: a folder without an `__init__.py` would be left out, and so would its files."""
    ours = {
        str(path.relative_to(ROOT))
        for package in PACKAGES - {"trunkline.py"}
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".sql", ".jinja")
    }
    assert len([name for name in ours if name.endswith(".sql")]) > 20
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == ours | {"trunkline.py"}


def test_by_command_where_torch_does_all(run: Run, tmp_path: Path, small_job_file: Path) -> None:
    """In a new place numba would compile for half a minute, for which a change does not wait."""
    (tmp_path / "numba.py").write_text("raise ImportError('left out')\n")
    without_numba = {"PYTHONPATH": str(tmp_path)}
    assert "21 (20 results, 1 errors)" in run("trunkline", "score", small_job_file, **without_numba)
    assert "20" in run("trunkline", "sql", "select count(*) from results", "--format", "csv")


@pytest.mark.nightly
def test_by_command(run: Run, small_job_file: Path) -> None:
    assert "21 (20 results, 1 errors)" in run("trunkline", "score", small_job_file)
    assert "20" in run("trunkline", "sql", "select count(*) from results", "--format", "csv")


@pytest.mark.nightly
def test_from_python(run: Run, folder: Path, environment: Path, small_job_file: Path) -> None:
    (folder / "program.py").write_text(PROGRAM)
    results, *places = run("python", "program.py", small_job_file).split()
    assert results == "20"
    assert all(place.startswith(str(environment.parent)) for place in places)


@pytest.mark.nightly
def test_in_a_worker(
    prefect_processes: Any,
    environment: Path,
    folder: Path,
    write_deployments: Any,
    small_job_file: Path,
    small_job: dict[str, Any],
) -> None:
    write_deployments(folder / "prefect.yaml", small_job_file)
    here = prefect_processes.there(environment, folder)
    here.run("prefect work-pool create trunkline --type process --overwrite")
    here.run("prefect --no-prompt deploy --all")
    with here.started("prefect worker start --pool trunkline"):
        here.run("prefect deployment run trunkline-score/nightly", "--watch", "--watch-timeout", "180")
    with query(Path(small_job["output"]), "select count(*) as n from results") as result:
        assert result.table()["n"].to_pylist() == [20]
