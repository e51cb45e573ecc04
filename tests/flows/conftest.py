"""A small job for flow tests, and real Prefect processes on ports of their own."""

import copy
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from flows.workers import in_process, workers_from
from tests.prefect_server import home_with

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

SERVER = "PREFECT_SERVER_ANALYTICS_ENABLED=false prefect server start"


@pytest.fixture(autouse=True)
def engine_in_process() -> Iterator[None]:
    """A run that a test calls itself has its engine here: one's own process imports torch for seconds.

    Commands run as they do for a person, and `tests/flows/test_workers.py` asks for what they have.
    """
    with workers_from(in_process):
        yield


Table = Callable[[Path, int], Path]
Job = dict[str, Any]


@pytest.fixture(scope="session")
def write_table() -> Table:
    """Writes `rows` questions about a few documents; the last row has no prompt."""

    def write(path: Path, rows: int) -> Path:
        documents = ["The parcel came late and the box was open.", "A kind answer within the hour, thank you."]
        table = {
            "row_id": [f"row-{i}" for i in range(rows)],
            "text": [
                None if i == rows - 1 else f"{documents[i % 2]} Case {i // 2}. Is this good or bad?"
                for i in range(rows)
            ],
            "truth": ["bad" if i % 2 == 0 else "good" for i in range(rows)],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), path)
        return path

    return write


@pytest.fixture
def small_job(tmp_path: Path, tiny_model: Path, write_table: Table) -> Job:
    """A choice job over 21 rows, one of them an error row, as a job file would hold it."""
    write_table(tmp_path / "rows.parquet", 21)
    return {
        "name": "small",
        "source": {"parquet": str(tmp_path / "*.parquet"), "id": "row_id", "keep": ["truth"]},
        "prompt": {"column": "text"},
        "task": {"type": "choice", "labels": [" good", " bad"]},
        "model": {"path": str(tiny_model)},
        "engine": {"kv_cache_memory": "64MiB"},
        "output": str(tmp_path / "out"),
    }


@pytest.fixture
def small_job_file(tmp_path: Path, small_job: Job) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(small_job))
    return path


@pytest.fixture(scope="session")
def write_deployments() -> Callable[[Path, Path], Path]:
    """Writes prefect.yaml with another job in the place of the example, and everything else as it stands there."""

    def write(path: Path, job_file: Path) -> Path:
        content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
        for deployment in content["deployments"]:
            if "job" in deployment["parameters"]:
                deployment["parameters"]["job"] = str(job_file)
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def small_deployment(tmp_path: Path, small_job_file: Path, write_deployments: Callable[[Path, Path], Path]) -> Path:
    return write_deployments(tmp_path / "prefect.yaml", small_job_file)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PrefectProcesses:
    """A Prefect home, server and workers that belong to one test module."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder = folder
        self.bin, self.cwd = BIN, ROOT
        self.port = free_port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.environment = os.environ | {
            "PREFECT_HOME": str(home_with(database, folder / "prefect")),
            "PREFECT_API_URL": self.api,
            "DO_NOT_TRACK": "1",
        }

    def there(self, programs: Path, folder: Path) -> "PrefectProcesses":
        """The same server, asked by another environment's programs from another folder."""
        other = copy.copy(self)
        other.bin, other.cwd, other.folder = programs, folder, folder
        other.environment = {name: value for name, value in self.environment.items() if name != "PYTHONPATH"}
        return other

    def run(self, command: str, *more: str) -> str:
        """Runs a command of the README, from the root of the project; fails the test when it fails."""
        done = subprocess.run(
            self._arguments(command, more),
            cwd=self.cwd,
            env=self.environment | _settings(command),
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def started(self, command: str, *more: str) -> Iterator[subprocess.Popen[bytes]]:
        """Keeps a command of the README running; its output goes to a file in the folder."""
        log = self.folder / f"{self._arguments(command, more)[1]}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._arguments(command, more),
                cwd=self.cwd,
                env=self.environment | _settings(command),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                _end(process)

    def wait_until_ready(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert server.poll() is None, (self.folder / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"{self.api}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.3)
        pytest.fail("the Prefect server was not ready in two minutes")

    def _arguments(self, command: str, more: tuple[str, ...]) -> list[str]:
        program, *arguments = shlex.split(command)[len(_settings(command)) :]
        return [str(self.bin / program), *arguments, *more]


def _settings(command: str) -> dict[str, str]:
    """What stands before the program, as in `NAME=value program`."""
    before = takewhile(re.compile(r"\w+=").match, shlex.split(command))
    return {name: value for name, _, value in (word.partition("=") for word in before)}


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    except ProcessLookupError:
        process.wait()


@pytest.fixture(scope="module")
def prefect_processes(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[PrefectProcesses]:
    """A running Prefect server with a home of its own."""
    processes = PrefectProcesses(tmp_path_factory.mktemp("prefect-processes"), migrated_database)
    with processes.started(SERVER, "--host", "127.0.0.1", "--port", str(processes.port)) as server:
        processes.wait_until_ready(server)
        yield processes
