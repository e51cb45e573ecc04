"""Kills a run at the n-th failpoint for n = 1, 2, ... until none is hit, runs it again, and compares.

A program of its own, so that nothing has a thread when it forks: each run is a forked child.
`python -m tests.tasks.kill_driver FOLDER FIRST STEP` prints the number of kills.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pandas  # noqa: F401  as pyarrow.dataset, imported at first use: once, not in each child
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from tasks.job.job import ScoringJob
from tasks.storage.manifests import read_manifests
from tasks.storage.output_folder import OutputFolder
from tests.tasks.fakes import FakeWorkers, job_content, write_model
from tests.tasks.steps import make_job, run_steps, table, use_fakes


def main(folder: Path, first: int, step: int) -> int:
    os.environ["TRUNKLINE_CACHE"] = str(folder / "cache")
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    write_model(folder / "model")
    monkeypatch = pytest.MonkeyPatch()
    use_fakes(monkeypatch, FakeWorkers(killer=b"deadly"))
    _child(lambda: _write_source(folder / "rows.parquet"))
    expected = folder / "expected.json"
    _child(lambda: _undisturbed(_job(folder, "expected"), expected))
    hit = first
    while _survives(_job(folder, f"out-{hit}"), hit, json.loads(expected.read_text())):
        hit += step
    return (hit - first) // step


def _survives(job: ScoringJob, hit: int, expected: list[object]) -> bool:
    """Kills the job's run twice, and checks what the third makes of it. False where the first is not killed."""
    if _child(lambda: _killed(job, hit, 1)) == 0:
        return False
    _child(lambda: _killed(job, hit // 2 + 1, 2))
    done = _child_value(lambda: _committed(job))
    assert len(set(done)) == len(done), done
    _child(lambda: _logged(job, 3))
    _child(lambda: _check(job, done, expected))
    return True


def _job(folder: Path, output: str) -> ScoringJob:
    source = {"parquet": str(folder / "rows.parquet"), "id": "id", "keep": ["topic"]}
    return make_job(job_content(folder, source, output=str(folder / output), shard_seconds=1e-4))


def _write_source(path: Path) -> None:
    texts = [f"Instruction. Document {i // 4}. Question {i % 3}?" if i % 9 else None for i in range(24)]
    texts[5] = "an unlucky row"
    texts[13] = "Instruction. Document 3. A deadly question?"
    rows = [{"id": f"r{i:02}", "text": text, "topic": i % 2} for i, text in enumerate(texts)]
    pq.write_table(pa.Table.from_pylist(rows), path)


def _undisturbed(job: ScoringJob, expected: Path) -> None:
    planned, _ = run_steps(job)
    assert len(planned.shards) >= 3, planned.shards
    expected.write_text(json.dumps(table(job)))


def _killed(job: ScoringJob, hit: int, attempt: int) -> None:
    os.environ["FAILPOINT"] = f"*:{hit}:kill"
    _logged(job, attempt)


def _logged(job: ScoringJob, attempt: int) -> None:
    os.environ["FAKE_ENGINE_LOG"] = f"{job.output_folder}.scored-{attempt}"
    run_steps(job)


def _committed(job: ScoringJob) -> list[str]:
    folder = OutputFolder(job.output_folder)
    names = [part.name for manifest in read_manifests(folder) for part in manifest.files]
    return [name for part in names for name in pq.read_table(folder.parts / part)["request_hash"].to_pylist()]


def _check(job: ScoringJob, done: list[str], expected: list[object]) -> None:
    """The table is the undisturbed run's; what was committed before the last run was not scored in it."""
    log = Path(f"{job.output_folder}.scored-3")
    scored = log.read_text().split() if log.exists() else []
    assert not set(scored) & set(done), (scored, done)
    assert json.loads(json.dumps(table(job))) == expected
    assert len(set(_committed(job))) == len(_committed(job))
    assert not any(OutputFolder(job.output_folder).staging.iterdir())


def _child(action: Callable[[], object]) -> int:
    """Runs it in a forked child. Returns 0, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -9), f"a child ended with {status}"
    return status


def _child_value(action: Callable[[], list[str]]) -> list[str]:
    read, write = os.pipe()
    _child(lambda: os.write(write, json.dumps(action()).encode()))
    os.close(write)
    with os.fdopen(read) as file:
        return list(json.load(file))


if __name__ == "__main__":
    sys.stdout.write(f"{main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))}\n")
