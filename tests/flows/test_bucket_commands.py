"""The commands of `docs/buckets.md` as they stand, on a real S3 server."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.settings import PREFECT_API_URL

from flows.cli import main
from flows.score import score
from tasks import shard_results
from tasks.job.job_file import parse_job
from tasks.storage.bucket_errors import BucketUnavailableError
from tests.flows.conftest import Job

pytest.importorskip("obstore", reason="an extra: pip install trunkline[s3]")

from tests.tasks.test_bucket_outages import away

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


@pytest.mark.nightly
def test_ctrl_c_waits_for_no_bucket(
    small_job: Job, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first part is what the bucket does not take, while a thread waits to commit it."""
    monkeypatch.setattr("tasks.storage.bucket.PATIENCE", 60.0)
    monkeypatch.setattr("tasks.storage.bucket.FIRST_PATIENCE", 0.3)
    job = parse_job(small_job | {"output": f"{s3_url}/ctrl-c/{tmp_path.name}"}, "test")
    commit_part, ctrl_c = shard_results.commit_part, list[float]()

    def interrupt() -> None:
        ctrl_c.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    with ExitStack() as outage:

        def part(*arguments: Any) -> None:
            outage.enter_context(away())
            threading.Timer(3.0, interrupt).start()
            commit_part(*arguments)

        monkeypatch.setattr(shard_results, "commit_part", part)
        with pytest.raises((KeyboardInterrupt, BucketUnavailableError)):
            score(job)
    assert time.monotonic() - ctrl_c[0] < 10
