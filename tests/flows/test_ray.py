"""Runs on a Ray of this machine's own, as commands and deployments have it."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import yaml

from flows.score import score
from flows.stopping import GRACE_SECONDS
from flows.workers import own_workers, workers_from
from tests.flows.conftest import Job
from tests.flows.test_killed_runs import Command
from tests.flows.test_several_workers import job_of, shard_rows, table

pytest.importorskip("ray", reason="an extra: pip install trunkline[ray]")

pytestmark = pytest.mark.nightly

FINE = {"shard_seconds": 1e-6, "runner": "ray"}


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


def actors() -> list[psutil.Process]:
    """Of Ray's that hold a device, whoever began them."""
    return [
        one for one in psutil.process_iter(["cmdline"]) if "ray::DeviceActor" in " ".join(one.info["cmdline"] or ())
    ]


def when(condition: Callable[[], object], action: Callable[[], object]) -> Thread:
    """Does it once the condition holds, or not at all in a minute."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while not condition():
            if time.monotonic() > deadline:
                return
            time.sleep(0.005)
        action()

    thread = Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.fault(2)
@pytest.mark.usefixtures("prefect_server")
def test_two_actors_write_what_one_engine_does_where_one_is_killed(small_job: Job) -> None:
    """The actor's process, and its engine with it; another actor takes its device."""
    one = job_of(small_job, "one", 1, shard_seconds=1e-6)
    two = job_of(small_job, "two", 2, **FINE)
    killed: list[int] = []

    def kill() -> None:
        killed.append(actors()[0].pid)
        os.kill(killed[0], signal.SIGKILL)

    with workers_from(own_workers):
        score(one)
        killer = when(lambda: list((two.output_folder / "manifests").glob("shard-*")), kill)
        report = score(two)
    killer.join(60)
    assert killed
    assert (report.published.results, report.published.errors, report.published.missing) == (20, 1, 0)
    for ours, theirs in zip(table(two), table(one), strict=True):
        assert (ours["custom_id"], ours["label"]) == (theirs["custom_id"], theirs["label"])
        if ours["label_probs"] is not None:
            assert dict(ours["label_probs"]) == pytest.approx(dict(theirs["label_probs"]), abs=1e-5)
    assert len(shard_rows(two)) == len(shard_rows(one))
    assert actors() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_process(
    small_job: dict[str, Any], tmp_path: Path, migrated_database: Path, number: signal.Signals
) -> None:
    """As a terminal sends it: to all of the command's processes."""
    small_job |= FINE | {"engine": small_job["engine"] | {"device": "cpu", "workers": 2, "max_num_batched_tokens": 64}}
    job_file = tmp_path / "job.yaml"
    job_file.write_text(yaml.safe_dump(small_job))
    command = Command(job_file, tmp_path, migrated_database)
    folders = {*Path("/tmp").glob("trunkline-ray-*")}
    manifests = tmp_path / "out" / "manifests"
    process = command.start(FAILPOINT="infer.done:3:hang")
    stop = when(lambda: len(list(manifests.glob("shard-*"))) >= 3, lambda: os.killpg(process.pid, number))
    assert process.wait(120 + GRACE_SECONDS) == 128 + number, command.printed
    stop.join(1)
    assert command.printed.endswith("trunkline: stopped; the same command continues\n")
    assert command.left_behind(30) == []
    left = {*Path("/tmp").glob("trunkline-ray-*")} - folders
    if number == signal.SIGTERM:  # Prefect has its handler while a flow runs, and may outlast the time that a run has
        for folder in left:
            shutil.rmtree(folder)
    else:
        assert left == set()
    assert command.run() == 0, command.printed
    assert "21 (20 results, 1 errors)" in command.printed
    assert command.left_behind(30) == []
