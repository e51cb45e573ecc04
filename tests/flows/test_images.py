"""The Dockerfiles of flows/deploy: what they pin, what they copy, whom they run as."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "flows" / "deploy"
IMAGES = ("cpu", "cuda")

Instruction = tuple[str, str]


def instructions(image: str) -> list[Instruction]:
    """Keyword and the rest of each instruction, without comments, in one line each."""
    lines = (FOLDER / f"{image}.Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", text)
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def rest_of(image: str, keyword: str) -> list[str]:
    return [rest for name, rest in instructions(image) if name == keyword]


def last_stage(image: str) -> list[Instruction]:
    found = instructions(image)
    begin = max(number for number, (keyword, _) in enumerate(found) if keyword == "FROM")
    return found[begin:]


@pytest.mark.parametrize("image", IMAGES)
def test_python_is_the_locks(image: str) -> None:
    """The lock's pins are what pip resolved for one Python; Debian and the minor version are named, never `latest`."""
    [version] = re.findall(r"by pip-compile with Python (\d+\.\d+)", (ROOT / "requirements.lock").read_text())
    assert [base.split()[0] for base in rest_of(image, "FROM")] == [f"python:{version}-slim-bookworm"] * 2


@pytest.mark.parametrize("image", IMAGES)
def test_every_version_is_the_locks(image: str) -> None:
    """No version stands in a Dockerfile: pip takes each from a lock, or installs what is copied and nothing else."""
    commands = [command.strip() for run in rest_of(image, "RUN") for command in run.split("&&")]
    installs = [command for command in commands if command.startswith("pip install")]
    pinned = [re.search(r"--(constraint|requirement) requirements(-weights)?\.lock", one) for one in installs]
    alone = "pip install --no-deps --no-build-isolation --force-reinstall ."
    assert [one for one, lock in zip(installs, pinned, strict=True) if lock is None] == [alone]
    assert len(installs) >= 4
    assert not re.search(r"[=<>~]=", " ".join(installs))
    # With isolation pip would take the newest setuptools to build with.
    assert all("--no-build-isolation" in one for one in installs if re.search(r" '?\.(\[|$)", one))


@pytest.mark.parametrize("image", IMAGES)
def test_what_a_variable_or_a_job_asks_for_is_there(image: str) -> None:
    """Endpoints, a Dask cluster and workbooks are asked for where nobody installs anything any more.

    A Ray cluster has images of its own, in which Trunkline is installed.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    [extras] = re.findall(r"requirements\.lock '\.\[([\w,]+)\]'", " ".join(rest_of(image, "RUN")))
    assert {*extras.split(",")} == {*project["project"]["optional-dependencies"]} - {"dev", "docs", "lm_eval", "ray"}


@pytest.mark.parametrize("image", IMAGES)
def test_all_of_the_package_is_copied_and_nothing_else(image: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    modules = {f"{name}.py" for name in project["tool"]["setuptools"]["py-modules"]}
    files = {
        "requirements.lock",
        "requirements-weights.lock",
        "pyproject.toml",
        project["project"]["readme"],
        "LICENSE",
    }
    copied = [name for rest in rest_of(image, "COPY") if "--from" not in rest for name in rest.split()[:-1]]
    assert sorted(copied) == sorted(packages | modules | files)
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("image", IMAGES)
def test_it_runs_as_nobody_special_in_the_folder_that_is_mounted(image: str) -> None:
    last = last_stage(image)
    assert last[-3:] == [("USER", "1000"), ("WORKDIR", "/srv/trunkline"), ("CMD", '["trunkline", "--help"]')]
    assert any("useradd --uid 1000 " in rest for keyword, rest in last if keyword == "RUN")
    # What built it stays in the first stage: one layer of files, one of packages and the user.
    assert [keyword for keyword, _ in last].count("COPY") == [keyword for keyword, _ in last].count("RUN") == 1


@pytest.mark.parametrize("image", IMAGES)
def test_it_holds_no_secret(image: str) -> None:
    assert rest_of(image, "ARG") == []
    names = {name for rest in rest_of(image, "ENV") for name in re.findall(r"(\w+)=", rest)}
    assert [name for name in names if re.search("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", name)] == []


@pytest.mark.nightly
@pytest.mark.parametrize("image", IMAGES)
def test_hadolint_has_nothing_to_say(image: str) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    said = subprocess.run([hadolint, FOLDER / f"{image}.Dockerfile"], capture_output=True, text=True)
    assert (said.returncode, said.stdout + said.stderr) == (0, "")
