"""A run that is killed or stopped in a process of its own, and the same command again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from engine.machine.device_turn import DeviceTurn
from flows.stopping import GRACE_SECONDS
from tests.flows.test_score import ROOT, answer, wait_for
from tests.prefect_server import home_with


class Command:
    """`trunkline score` in a process of its own, with the ephemeral server, as a person runs it."""

    def __init__(self, job_file: Path, folder: Path, database: Path) -> None:
        self._arguments = [sys.executable, "-m", "flows.cli", "score", str(job_file), "--set", "shard_seconds=0.000001"]
        self._home = str(home_with(database, folder / "prefect"))
        self._environment = os.environ | {"PREFECT_HOME": self._home, "XDG_STATE_HOME": str(folder / "state")}
        self._environment.pop("PREFECT_API_URL", None)
        self._output = folder / "output.txt"

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        with self._output.open("w") as file:
            more = self._environment | environment
            # A group of its own, which a test may signal as a terminal does.
            return subprocess.Popen(self._arguments, cwd=ROOT, env=more, stdout=file, stderr=file, process_group=0)

    def run(self, **environment: str) -> int:
        return self.start(**environment).wait(240)

    @property
    def printed(self) -> str:
        return self._output.read_text()

    def left_behind(self, seconds: float) -> list[str]:
        """Processes of this command's that are still there after so long."""
        deadline = time.monotonic() + seconds
        while (found := [p for p in psutil.process_iter() if self._is_ours(p)]) and time.monotonic() < deadline:
            time.sleep(0.2)
        return [str(process) for process in found]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return bool(process.environ().get("PREFECT_HOME") == self._home)
        except (psutil.Error, OSError):
            return False


@pytest.mark.fault(1, 3)
def test_killed_and_stopped_in_the_middle_the_same_command_continues(
    small_job_file: Path, small_job: dict[str, Any], tmp_path: Path, migrated_database: Path
) -> None:
    manifests = Path(small_job["output"]) / "manifests"
    command = Command(small_job_file, tmp_path, migrated_database)
    assert command.run(FAILPOINT="infer.done:3:kill") == -signal.SIGKILL
    assert command.left_behind(30) == []
    done = len(list(manifests.glob("shard-*")))
    assert done >= 3

    # A shard that hangs is what Prefect would wait for to the end.
    process = command.start(FAILPOINT="infer.done:2:hang")
    wait_for(lambda: len(list(manifests.glob("shard-*"))) >= done + 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(GRACE_SECONDS + 20) == 128 + signal.SIGTERM
    assert command.printed == "trunkline: stopped; the same command continues\n"
    assert command.left_behind(30) == []

    assert command.run() == 0, command.printed
    assert "21 (20 results, 1 errors)" in command.printed
    per_shard = answer(small_job, "select shard_id, count(*) as n from shards group by shard_id")
    assert all(row["n"] == 1 for row in per_shard)
    runs = answer(small_job, "select run_id, sum(requests)::int as n from shards group by run_id order by run_id")
    assert len(runs) == 3
    assert sum(row["n"] for row in runs) == 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_waits_to_load_its_model(
    small_job: dict[str, Any],
    tmp_path: Path,
    migrated_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    """SIGTERM is how Prefect cancels a run that a worker started."""
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))
    small_job["engine"]["max_num_batched_tokens"] = 64
    job_file = tmp_path / "job.yaml"
    job_file.write_text(yaml.safe_dump(small_job))
    command = Command(job_file, tmp_path, migrated_database)
    cores = sorted(os.sched_getaffinity(0))
    turn = DeviceTurn([f"core-{core}" for core in cores])
    turn.take(command, given_up=lambda: False)
    try:
        process = command.start(OMP_NUM_THREADS=str(len(cores)))
        wait_for(lambda: "waiting for" in command.printed or process.poll() is not None)
        process.send_signal(number)
        assert process.wait(GRACE_SECONDS + 20) == 128 + number, command.printed
    finally:
        turn.give(command)
    assert command.printed.endswith("trunkline: stopped; the same command continues\n")
    assert command.left_behind(30) == []
