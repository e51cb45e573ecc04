"""Kills a run into a bucket at its n-th failpoint for n = 1, 2, ... until none is hit, goes on, and compares.

Every second time what goes on is another machine: it has nothing but what is in the bucket, and waits for the lease to
end. A program of its own, like `tests.tasks.kill_driver`, of which no process that forks has a thread of a client's.
`python -m tests.tasks.bucket_kills FOLDER URL` prints the failpoint of each kill, a line each.
"""

import gc
import json
import os
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pandas  # noqa: F401  # or pyarrow would import it, in every child
import pytest

from tasks.job.job import ScoringJob
from tasks.storage.open_folder import folder_of
from tests.tasks.fakes import FakeWorkers, job_content, write_model
from tests.tasks.kill_driver import child, write_source
from tests.tasks.steps import make_job, part_rows, run_steps, table, use_fakes

# Short enough to be waited for so often, and long enough for a request of a third of it.
LEASE_SECONDS = "2"


def main(folder: Path, url: str) -> Iterator[str]:
    os.environ |= {"XDG_STATE_HOME": str(folder / "state"), "TRUNKLINE_LEASE_SECONDS": LEASE_SECONDS}
    write_model(folder / "model")
    use_fakes(pytest.MonkeyPatch(), FakeWorkers(step_requests=1))
    write_source(folder / "rows.jsonl")
    gc.freeze()  # a child's collections would copy what it shares with this process
    expected = folder / "expected.json"
    child(lambda: _undisturbed(_job(folder, str(folder / "expected")), expected))
    for hit in count(1):
        job, said = _job(folder, f"{url}/{hit}"), folder / f"{hit}.killed"
        if child(lambda job=job, hit=hit: _run(job, folder / f"{hit}-one", f"*:{hit}:kill"), said) == 0:  # type: ignore[misc]
            return
        yield said.read_text().split()[-1]
        cache = folder / (f"{hit}-another" if hit % 2 else f"{hit}-one")
        child(lambda job=job, cache=cache: _finish(job, cache, json.loads(expected.read_text())))  # type: ignore[misc]


def _job(folder: Path, output: str) -> ScoringJob:
    source = {"jsonl": str(folder / "rows.jsonl"), "id": "id", "keep": ["topic"]}
    task = {"type": "generate", "column": "ask", "labels": [" yes", " no"]}
    content = job_content(folder, source, output=output, shard_seconds=1e-4, task=task)
    return make_job(content | {"sampling": {"max_tokens": 3}})


def _undisturbed(job: ScoringJob, expected: Path) -> None:
    run_steps(job)
    expected.write_text(json.dumps(table(job)))


def _run(job: ScoringJob, cache: Path, failpoint: str) -> None:
    os.environ |= {"TRUNKLINE_CACHE": str(cache), "FAILPOINT": failpoint}
    run_steps(job)


def _finish(job: ScoringJob, cache: Path, expected: list[object]) -> None:
    """The table is the undisturbed run's; what was committed before this run is not scored in it."""
    log = cache.with_suffix(".scored")
    os.environ |= {"TRUNKLINE_CACHE": str(cache), "FAKE_ENGINE_LOG": str(log)}
    folder_of(job).look()
    done = {row["request_hash"] for row in part_rows(job)}
    run_steps(job, wait=60)
    assert not done & set(log.read_text().split() if log.exists() else ())
    assert json.loads(json.dumps(table(job))) == expected
    committed = [row["request_hash"] for row in part_rows(job)]
    assert len(set(committed)) == len(committed)


if __name__ == "__main__":
    for place in main(Path(sys.argv[1]), sys.argv[2]):
        sys.stdout.write(f"{place}\n")
        sys.stdout.flush()
