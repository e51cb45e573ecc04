"""The Prefect server is killed in the middle of a run, which it is no part of."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.query import query
from tests.flows.conftest import ROOT, PrefectProcesses


@pytest.mark.fault(4)
def test_every_shard_is_committed_though_the_server_is_gone(
    prefect_processes: PrefectProcesses, small_job_file: Path, small_job: dict[str, Any], tmp_path: Path
) -> None:
    """The run stands still while the server is killed, with some of its shards committed; it ends without one."""
    folder = Path(small_job["output"])
    command = [sys.executable, "-m", "flows.cli", "score", str(small_job_file), "--set", "shard_seconds=0.000001"]
    given = prefect_processes.environment | {"FAILPOINT": "infer.done:2:stop", "XDG_STATE_HOME": str(tmp_path)}
    given["PREFECT_CLIENT_MAX_RETRIES"] = "0"  # or Prefect would ask for minutes before it gives up the run's own state
    with (tmp_path / "printed").open("wb") as printed:
        run = subprocess.Popen(command, cwd=ROOT, env=given, stdout=printed, stderr=printed)
        try:
            _wait_until_stopped(run)
            done = len(list(folder.glob("manifests/shard-*")))
            _kill(prefect_processes)
            run.send_signal(signal.SIGCONT)
            code = run.wait(240)
        finally:
            run.kill()
            run.wait()
    last = (tmp_path / "printed").read_text().splitlines()
    assert code == 1, last[-5:]
    assert any(line.startswith("trunkline: ") and line.endswith("; the same command continues") for line in last)
    counted = "select count(*) as shards, count(distinct shard_id) as once, sum(requests)::int as requests from shards"
    with query(folder, counted) as result:
        [counts] = result.table().to_pylist()
    assert 2 <= done < counts["shards"] == counts["once"]
    assert counts["requests"] == 20
    with query(folder, "select (select count(*) from results) as r, (select count(*) from errors) as e") as result:
        assert result.table().to_pylist() == [{"r": 20, "e": 1}]


def _wait_until_stopped(run: subprocess.Popen[bytes]) -> None:
    process, deadline = psutil.Process(run.pid), time.monotonic() + 240
    while process.status() != psutil.STATUS_STOPPED:
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _kill(processes: PrefectProcesses) -> None:
    """The server, which listens on its port, and all that it started."""
    [server] = [one for one in psutil.process_iter() if _serves(one, processes.port)]
    os.killpg(server.pid, signal.SIGKILL)
    psutil.wait_procs([server], 10)


def _serves(process: psutil.Process, port: int) -> bool:
    try:
        return process.ppid() == os.getpid() and str(port) in process.cmdline()
    except psutil.Error:
        return False
