"""A folder is queried while a run goes on in it: at a failpoint where the run waits, and after it was killed there."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import UserError
from tasks.query import query
from tasks.report.run_list import list_runs
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import open_run
from tests.tasks.conftest import JobMaker
from tests.tasks.steps import ask, run_steps

ROWS = 40
RUNS = "select status, rows, rejected, scored, error from runs order by sequence"


@contextmanager
def hanging(folder: Path, failpoint: str, ready: Callable[[], bool]) -> Iterator[None]:
    """A run that waits at a failpoint, which `ready` knows, until the context ends by kill -9."""
    environment = os.environ | {
        "FAILPOINT": f"{failpoint}:hang",
        "TRUNKLINE_CACHE": str(folder / "cache"),
        "XDG_STATE_HOME": str(folder / "state"),
    }
    command = [sys.executable, "-m", "tests.sql.live_driver", str(folder)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as run:
        try:
            deadline = time.monotonic() + 120
            while not ready():
                assert run.poll() is None, run.stderr.read() if run.stderr else ""
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield
        finally:
            run.send_signal(signal.SIGKILL)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    texts = [f"document {i}" if i else None for i in range(ROWS)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    return tmp_path / "out"


def warned(out: Path, sql: str) -> str:
    with query(out, sql) as result:
        result.table()
        return str(result.warning)


@pytest.mark.fault(1, 3)
def test_a_new_folder_while_its_first_run_waits_and_after_it_was_killed(tmp_path: Path, out: Path) -> None:
    manifests = out / "manifests"
    with hanging(tmp_path, "infer.done:2", lambda: len(list(manifests.glob("shard-*"))) == 2):
        committed = ask(out, "select sum(rows)::int as n from shards")[0]["n"]
        assert 0 < committed < ROWS - 1
        counts = "select (select count(*) from results) as results, (select count(*) from errors) as errors"
        assert ask(out, counts) == [{"results": committed, "errors": 1}]
        [run] = ask(out, RUNS)
        assert (run["status"], run["rows"], run["rejected"]) == ("running", ROWS, 1)
        assert ask(out, "select stage from runs") == [{"stage": "starting"}], "no flow is there to say more"
        assert f"is running; {committed + 1} of {ROWS} rows have an end so far" in warned(out, "from results")
        with duckdb.connect(str(out / "results.duckdb"), config={"file_search_path": str(out)}) as own:
            assert own.sql("select status, rows_done from runs").fetchall() == [("running", None)]
        assert [one.state for one in list_runs(OutputFolder(out))] == ["running"]

    assert ask(out, "select status, stage, seconds_left from runs") == [
        {"status": "interrupted", "stage": None, "seconds_left": None}
    ]
    assert ask(out, counts) == [{"results": committed, "errors": 1}]
    assert "rows are missing" in warned(out, "from results")
    assert [one.state for one in list_runs(OutputFolder(out))] == ["interrupted"]


def test_before_its_plan_a_new_folder_says_so(job_of: JobMaker) -> None:
    job = job_of([{"text": "a"}])
    with open_run(job) as run, pytest.raises(UserError, match=f"{run.run_id} is running, and has no plan yet"):
        ask(job.output_folder, "from runs")


def test_what_was_published_stays_until_the_next_run_publishes(job_of: JobMaker, tmp_path: Path, out: Path) -> None:
    """The table of the next run has other rows; a reader sees the one or the other, and nothing between."""
    run_steps(job_of([{"text": f"document {i}"} for i in range(ROWS)], shard_seconds=1e-4))
    published: list[Any] = ask(out, "from results order by custom_id")
    assert len(published) == ROWS
    pq.write_table(pa.table({"text": [f"other {i}" for i in range(ROWS)]}), tmp_path / "rows.parquet")
    shards = len(list((out / "manifests").glob("shard-*")))
    with hanging(tmp_path, "infer.done:1", lambda: len(list((out / "manifests").glob("shard-*"))) > shards):
        assert ask(out, "from results order by custom_id") == published
        assert [run["status"] for run in ask(out, RUNS)] == ["completed", "running"]
