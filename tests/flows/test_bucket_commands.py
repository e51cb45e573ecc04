"""The commands of `docs/buckets.md` as they stand, on a real S3 server."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prefect.settings import PREFECT_API_URL

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
        [sys.executable, "-m", "examples.packages", "--packages", "1"], cwd=tmp_path, env=_on("one"), check=True
    )
    return tmp_path


def _on(machine: str) -> dict[str, str]:
    """A machine that has nothing of the other's but what is in the bucket."""
    own = {"TRUNKLINE_CACHE": machine, "XDG_STATE_HOME": f"state-{machine}"}
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PREFECT_API_URL": PREFECT_API_URL.value() or "",
        **own,
    }


def _run(project: Path, machine: str, command: str) -> "subprocess.CompletedProcess[str]":
    words = shlex.split(command)
    assert words[0] == "trunkline"
    program = [sys.executable, "-m", "trunkline", *words[1:]]
    return subprocess.run(program, cwd=project, env=_on(machine), capture_output=True, text=True, timeout=240)


def test_the_commands_of_the_page(project: Path) -> None:
    scored = _run(project, "one", SCORE)
    assert scored.returncode == 0, scored.stderr
    assert "results  " in scored.stdout
    assert "s3://results/package-topics" in scored.stdout
    asked = _run(project, "another", QUERY)
    assert asked.returncode == 0, asked.stderr
    assert "label" in asked.stdout
    listed = _run(project, "another", "trunkline runs s3://results/package-topics --format json")
    [run] = json.loads(listed.stdout)
    assert (run["state"], run["folder"]) == ("completed", "s3://results/package-topics")
    again = _run(project, "another", SCORE)
    assert again.returncode == 0, again.stderr
    assert "nothing: every row" in again.stdout


@pytest.mark.fault(25)
def test_what_is_wrong_is_said_before_work_starts(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a wrong one")
    refused = _run(project, "one", SCORE)
    assert (refused.returncode, refused.stdout) == (2, "")
    [line] = refused.stderr.splitlines()
    assert line.startswith("trunkline: examples/classify.yaml: output: s3://results/package-topics: refused (Signature")
    assert "a wrong one" not in line
