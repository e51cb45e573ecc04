"""A run looks up no outside name: neither the model hub nor Prefect's telemetry."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

ROOT = Path(__file__).parents[1]
LOCAL = {"localhost", "127.0.0.1", "::1", "0.0.0.0"}

# Python imports it at start, in every child process too; the audit hook sees what cannot be patched around.
WATCHER = """
import json, os, sys

NAMES = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyname_ex", "socket.gethostbyaddr"}


def watch(event, arguments):
    if event in NAMES:
        seen = arguments[0]
    elif event in {"socket.connect", "socket.sendto"} and isinstance(arguments[1], tuple):
        seen = arguments[1][0]
    else:
        return
    seen = seen.decode() if isinstance(seen, bytes) else seen
    with open(os.environ["LOOKED_UP"], "a") as log:
        log.write(json.dumps([event, seen, sys.argv[:2]]) + "\\n")


sys.addaudithook(watch)
"""


class Watched:
    """Runs Python programs and reads what they, and their children, looked up."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "looked-up.jsonl"
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(WATCHER)
        # Only what the program itself sets may keep it quiet; a CI machine is left alone by Prefect in any case.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "HF_", "DO_NOT", "CI", "GITHUB"))}
        self._environment = kept | {
            "PYTHONPATH": f"{folder / 'hook'}{os.pathsep}{ROOT}",
            "LOOKED_UP": str(self._log),
            "PREFECT_HOME": str(folder / "prefect"),
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], env=self._environment, capture_output=True, text=True, cwd=ROOT, timeout=300
        )

    def seen(self) -> list[Any]:
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_the_watcher_sees_a_child_that_looks_up_a_name(watched: Watched) -> None:
    child = "import socket\ntry: socket.getaddrinfo('name.invalid', 80)\nexcept OSError: pass"
    watched.run("-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
    assert [name for _, name, _ in watched.seen()] == ["name.invalid"]


@pytest.fixture
def job_file(tmp_path: Path, tiny_model: Path) -> Path:
    texts = ["The parcel was late.", "A kind answer, thank you.", "The parcel was late."]
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    job = {
        "name": "offline",
        "source": {"parquet": str(tmp_path / "rows.parquet")},
        "prompt": {"column": "text", "chat": True},
        "task": {"type": "generate"},
        "sampling": {"max_tokens": 4},
        "model": {"path": str(tiny_model)},
        "engine": {"kv_cache_memory": "64MiB"},
        "output": str(tmp_path / "out"),
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def test_a_run_looks_up_no_outside_name(watched: Watched, job_file: Path) -> None:
    done = watched.run("-m", "flows.cli", "score", str(job_file))
    assert done.returncode == 0, done.stderr
    seen = watched.seen()
    assert any(name in LOCAL for _, name, _ in seen), "the watcher saw not even the Prefect server"
    assert [entry for entry in seen if entry[1] is not None and entry[1] not in LOCAL] == []


def test_the_embedded_model_is_found_without_a_network(watched: Watched, job_file: Path) -> None:
    done = watched.run("-m", "flows.cli", "plan", str(job_file), "--set", "model.path=embedded")
    assert done.returncode == 0, done.stderr
    assert watched.seen() == []
