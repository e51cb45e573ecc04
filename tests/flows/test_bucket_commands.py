"""The commands of `docs/buckets.md` as they stand, on a real S3 server."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prefect.settings import PREFECT_API_URL

from flows.cli import main

pytest.importorskip("obstore", reason="an extra: pip install trunkline[s3]")

ROOT = Path(__file__).parents[2]

SCORE = "trunkline score examples/classify.yaml --output s3://results/package-topics"
QUERY = 'trunkline sql "select label, count(*) from results group by all" --output s3://results/package-topics'


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path, s3_url: str, prefect_server: None) -> Path:
    assert s3_url == "s3://results", "the bucket of the page"
    job = yaml.safe_load((ROOT / "examples" / "classify.yaml").read_text())
    job["model"]["path"] = str(tiny_model)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "classify.yaml").write_text(yaml.safe_dump(job))
    subprocess.run(
        [sys.executable, "-m", "examples.packages", "--packages", "1"], cwd=tmp_path, env=_on(None), check=True
    )
    return tmp_path


def _on(machine: str | None) -> dict[str, str]:
    """This machine, with the loops that are compiled on it, or another: it has nothing but what is in the bucket."""
    own = {} if machine is None else {"TRUNKLINE_CACHE": machine, "XDG_STATE_HOME": f"state-{machine}"}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "PREFECT_API_URL": PREFECT_API_URL.value() or "", **own}


def _run(project: Path, machine: str | None, command: str) -> "subprocess.CompletedProcess[str]":
    words = shlex.split(command)
    assert words[0] == "trunkline"
    program = [sys.executable, "-m", "trunkline", *words[1:]]
    return subprocess.run(program, cwd=project, env=_on(machine), capture_output=True, text=True, timeout=240)


def test_the_commands_of_the_page(project: Path) -> None:
    scored = _run(project, None, SCORE)
    assert scored.returncode == 0, scored.stderr
    assert "results  " in scored.stdout
    assert "s3://results/package-topics" in scored.stdout
    asked = _run(project, "another", QUERY)
    assert asked.returncode == 0, asked.stderr
    assert "label" in asked.stdout


@pytest.mark.fault(25)
def test_what_is_wrong_is_said_before_work_starts(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a wrong one")
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", shlex.split(SCORE))
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    [line] = said.err.splitlines()
    assert line.startswith("trunkline: examples/classify.yaml: output: s3://results/package-topics: refused (Signature")
    assert "a wrong one" not in line
