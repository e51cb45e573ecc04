"""`trunkline runs` and `trunkline stop` on folders as runs leave them."""

import csv
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest

from engine.errors import UserError
from flows import cli
from flows.show_runs import find_runs
from flows.stop_run import stop_run
from tasks.job.job import ScoringJob
from tasks.report.used_folders import remember_folder
from tasks.storage.open_folder import open_folder
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import open_run
from tasks.storage.run_progress import RunProgress, write_progress
from tasks.storage.run_record import read_records, update_record
from tasks.storage.stop_request import is_asked
from tests.tasks.conftest import JobMaker, engine, job_of
from tests.tasks.steps import plan_alone, run_steps

__all__ = ["engine", "job_of"]

ROWS = [{"text": f"text {i}" if i else None} for i in range(5)]


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["trunkline", *arguments])
        with suppress(SystemExit):
            cli.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def used(job_of: JobMaker, tmp_path: Path) -> list[ScoringJob]:
    """A folder with a run that completed, and one whose run is interrupted."""
    jobs = [job_of(ROWS, output=str(tmp_path / name)) for name in ("one", "two")]
    run_steps(jobs[0])
    plan_alone(jobs[1])
    for job in jobs:
        remember_folder(OutputFolder(job.output_folder))
    return jobs


def test_all_folders_and_one(used: list[ScoringJob], printed: Callable[..., str], tmp_path: Path) -> None:
    listed = json.loads(printed("runs", "--format", "json"))
    assert [(run["state"], run["rows_done"], run["rows"], run["errors"], run["folder"]) for run in listed] == [
        ("completed", 5, 5, 1, str(tmp_path / "one")),
        ("interrupted", None, 5, None, str(tmp_path / "two")),
    ]
    [header, row] = csv.reader(StringIO(printed("runs", str(tmp_path / "two"), "--format", "csv")))
    assert dict(zip(header, row, strict=True))["state"] == "interrupted"
    table = printed("runs", str(tmp_path / "one"))
    assert "5 of 5" in table
    assert "completed" in table
    used[0].output_folder.rename(tmp_path / "gone")
    assert [run.folder for run in find_runs(None)] == [str(tmp_path / "two")]


def test_nothing_was_run(printed: Callable[..., str]) -> None:
    assert printed("runs").startswith("no run is remembered here")
    assert json.loads(printed("runs", "--format", "json")) == []


def test_the_newest_of_a_folder(used: list[ScoringJob], monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        run_steps(used[0])
    one, other = (OutputFolder(job.output_folder) for job in used)
    every = [record.run_id for record in read_records(one)]
    assert [run.run_id for run in find_runs(one.root)] == every
    assert [run.run_id for run in find_runs(one.root, 1)] == every[-1:]
    monkeypatch.setattr("flows.show_runs.LAST_OF_EACH", 2)
    assert [run.run_id for run in find_runs(None)] == [*every[-2:], read_records(other)[0].run_id]


def test_a_run_that_goes_on_stands_last_and_says_how_far_it_is(
    used: list[ScoringJob], printed: Callable[..., str]
) -> None:
    with open_run(used[0]) as run:
        progress = RunProgress(run.run_id, "scoring", 61.0, rows_done=3, row_errors=1, seconds_left=125.0)
        write_progress(run.folder, progress)
        last = find_runs(None)[-1]
        assert (last.run_id, last.state, last.rows_done, last.seconds_left) == (run.run_id, "running", 3, 125.0)
        assert "1 min 01 s" in (table := printed("runs"))
        assert "2 min 05 s" in table
        write_progress(run.folder, replace(progress, stage="waiting for process 7 on a"))
        assert "running: waiting for process 7 on a" in printed("runs")


def test_nothing_runs(used: list[ScoringJob]) -> None:
    with pytest.raises(UserError, match="nothing runs there"):
        stop_run(used[0].output_folder, 0)
    with pytest.raises(UserError, match="nothing is running in the folders"):
        stop_run(None, 0)


def test_a_run_that_has_not_said_its_name_yet(used: list[ScoringJob]) -> None:
    with open_run(used[0]) as run:
        (run.root / ".lock").write_text("{")
        with pytest.raises(UserError, match="just beginning there; try again"):
            stop_run(run.root, 0)


@pytest.mark.fault(10)
def test_a_dead_runs_process_id_that_is_anothers_now_is_left_alone(used: list[ScoringJob]) -> None:
    folder = OutputFolder(used[0].output_folder)
    [record] = read_records(folder)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as innocent:
        lock = {"pid": innocent.pid, "host": socket.gethostname(), "token": "dead"}
        (folder.root / ".lock").write_text(json.dumps(lock))
        update_record(folder, record.run_id, status="running", holder="dead")
        assert [run.state for run in find_runs(folder.root)] == ["interrupted"]
        with pytest.raises(UserError, match="nothing runs there"):
            stop_run(folder.root, 0)
        innocent.communicate(b"\n")
        assert innocent.returncode == 0
    assert not folder.stop_request.exists()


@pytest.mark.fault(11)
def test_runs_keep_their_order_and_their_length_whatever_the_clock_says(used: list[ScoringJob]) -> None:
    folder = used[0].output_folder
    for year in (2099, 1970):
        moments = iter([datetime(year, 1, 2, tzinfo=UTC), datetime(year, 1, 1, tzinfo=UTC)])
        with open_run(used[0], clock=lambda: next(moments)):  # noqa: B023
            pass
    listed = find_runs(folder)[1:]
    assert [run.started_at[:4] for run in listed] == ["2099", "1970"]
    assert all(run.seconds is not None and 0 <= run.seconds < 60 for run in listed)
    assert [run.folder for run in find_runs(None)][-1] != str(folder), "other folders are not ordered by it either"


@pytest.mark.parametrize("lacks", ["the server", "the library"])
def test_a_bucket_that_cannot_be_read_hides_no_other_folder(
    lacks: str,
    used: list[ScoringJob],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    pytest.importorskip("obstore", reason="an extra: pip install trunkline[s3]")
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))
    remember_folder(open_folder("s3://away/folder"))
    if lacks == "the server":
        said = "trunkline: output: s3://away/folder: http://127.0.0.1:1 does not answer; see to the network, or say"
        for name, value in (("ENDPOINT_URL", "http://127.0.0.1:1"), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setattr("tasks.storage.bucket.FIRST_PATIENCE", 0.0)
    else:
        said = "trunkline: output: s3://away/folder needs obstore: pip install 'trunkline[s3]'"
        monkeypatch.setitem(sys.modules, "obstore", None)
        for name in ("bucket", "bucket_folder", "lease"):
            monkeypatch.delitem(sys.modules, f"tasks.storage.{name}", raising=False)
    assert [run.state for run in find_runs(None)] == ["completed", "interrupted"]
    assert capsys.readouterr().err.startswith(said)
    with open_run(used[0]):
        assert stop_run(None, 0) == 0
    assert capsys.readouterr().err.startswith(said)


def test_the_only_run_is_meant_where_none_is_named(
    used: list[ScoringJob], printed: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run(used[0]) as one:
        assert stop_run(None, 0) == 0
        one.folder.stop_request.unlink()
        command = "trunkline stop runs/package-topics".replace("runs/package-topics", f"{one.root} --wait 0")
        assert f"{one.root}: asked process {os.getpid()} on " in printed(*command.split()[1:])
        assert one.holder is not None
        assert is_asked(one.folder, one.holder)
        with open_run(used[1]), pytest.raises(UserError, match=r"several runs go on, in .*one, .*two; name one"):
            stop_run(None, 0)
        assert stop_run(None, 0.3) == 1
        assert "still running after 0.3 s" in capsys.readouterr().err
