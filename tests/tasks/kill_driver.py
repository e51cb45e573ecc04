"""Kills a run at its n-th failpoint for n = 1, 2, ... until none is hit, runs it again, and compares.

A program of its own, so that nothing has a thread when it forks: each run is a forked child.
`python -m tests.tasks.kill_driver FOLDER SCENARIO` prints the failpoint of each kill, a line each.
"""

import gc
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pandas  # noqa: F401  # or pyarrow would import it, in every child
import pytest

import tasks.shard_scorer
from tasks.job.job import ScoringJob
from tasks.report.page import report_template
from tasks.storage.manifests import read_manifests
from tasks.storage.output_folder import OutputFolder
from tests.tasks.fakes import FakeWorkers, job_content, write_model
from tests.tasks.steps import make_job, part_rows, run_steps, table, use_fakes

ENGINE = FakeWorkers(killer=b"deadly", step_requests=1)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What lies in the output folder before the run, how the run is asked for, and how often it is killed."""

    before: Callable[[ScoringJob], None]
    killed_again: bool = False
    retry_failed: bool = False

    def run(self, job: ScoringJob, attempt: int) -> None:
        """Rows that are tried again have an answer then. What the engine scores is logged."""
        ENGINE.heals = self.retry_failed
        os.environ["FAKE_ENGINE_LOG"] = f"{job.output_folder}.scored-{attempt}"
        run_steps(job, retry_failed=self.retry_failed)


def _nothing(_: ScoringJob) -> None:
    """The folder's first run."""


def _some(job: ScoringJob) -> None:
    """A run that was killed when it had committed some rows of a shard."""
    assert child(lambda: _killed(SCENARIOS["fresh"], job, "checkpoint.done:1", 0)) == -9


def _all(job: ScoringJob) -> None:
    """A whole run, with a row that has no answer."""
    child(lambda: SCENARIOS["fresh"].run(job, 0))


SCENARIOS = {
    "fresh": Scenario(_nothing, killed_again=True),
    "resumed": Scenario(_some),
    "retried": Scenario(_all, retry_failed=True),
}
# A clock that a look at it moves on: a checkpoint comes after so many outputs of a shard, the last one's being its own.
LOOKS_AN_OUTPUT, OUTPUTS_A_CHECKPOINT = 2, 3


def main(folder: Path, name: str) -> Iterator[str]:
    scenario = SCENARIOS[name]
    os.environ["TRUNKLINE_CACHE"] = str(folder / "cache")
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    write_model(folder / "model")
    patch = pytest.MonkeyPatch()
    use_fakes(patch, ENGINE)
    patch.setattr(tasks.shard_scorer, "time", SimpleNamespace(monotonic=count().__next__))
    write_source(folder / "rows.jsonl")
    report_template()
    gc.freeze()  # a child's collections would copy what it shares with this process
    expected = folder / "expected.json"
    child(lambda: SCENARIOS["fresh"].run(_job(folder, "start", "rows-1.jsonl"), 0))
    (folder / "start").rename(folder / "earlier")
    scenario.before(_job(folder, "start"))
    child(lambda: _undisturbed(scenario, _started(folder, "expected"), expected))
    hit = 1
    while (killed_at := _survives(scenario, _started(folder, f"out-{hit}"), hit, expected)) is not None:
        yield killed_at
        hit += 1


def _survives(scenario: Scenario, job: ScoringJob, hit: int, expected: Path) -> str | None:
    """Kills the job's run, maybe twice, and checks what the next makes of it. None where the first is not killed."""
    said = Path(f"{job.output_folder}.killed")
    if child(lambda: _killed(scenario, job, f"*:{hit}", 1), said) == 0:
        return None
    killed_at = said.read_text().split()[-1]
    if scenario.killed_again:
        child(lambda: _killed(scenario, job, f"*:{hit // 2 + 1}", 2), said)
    child(lambda: _finish(scenario, job, json.loads(expected.read_text())))
    return killed_at


def _job(folder: Path, output: str, rows: str = "rows.jsonl") -> ScoringJob:
    """With a store, that knows some of the rows from an earlier job's run."""
    source = {"jsonl": str(folder / rows), "id": "id", "keep": ["topic"]}
    task = {"type": "generate", "column": "ask", "labels": [" yes", " no"]}
    content = job_content(folder, source, output=str(folder / output), shard_seconds=1e-4, task=task)
    checkpoints = {"checkpoint_seconds": LOOKS_AN_OUTPUT * OUTPUTS_A_CHECKPOINT - 1}
    return make_job(content | checkpoints | {"sampling": {"max_tokens": 3}, "store": str(folder / f"{output}-store")})


def _started(folder: Path, output: str) -> ScoringJob:
    """The job over a copy of what lay there before."""
    for there in ("start", "start-store"):
        if (folder / there).is_dir():
            shutil.copytree(folder / there, folder / there.replace("start", output))
    return _job(folder, output)


def write_source(path: Path) -> None:
    """Texts and choices, rows without a prompt, and one that the engine has no answer for; the first two by themselves
    too.
    """
    texts = [f"Instruction. Document {i // 4}. Question {i % 3}?" if i % 9 else None for i in range(1, 15)]
    texts[5] = "an unlucky row"
    rows = [
        {"id": f"r{i:02}", "text": text, "topic": i % 2, "ask": "choice" if i % 2 else None}
        for i, text in enumerate(texts)
    ]
    for file, some in ((path, rows), (path.with_name("rows-1.jsonl"), rows[:2])):
        file.write_text("".join(f"{json.dumps(row)}\n" for row in some))


def _undisturbed(scenario: Scenario, job: ScoringJob, expected: Path) -> None:
    scenario.run(job, 1)
    assert len(read_manifests(OutputFolder(job.output_folder))) > scenario.retry_failed + 1, "fewer than two shards"
    expected.write_text(json.dumps(table(job)))


def _killed(scenario: Scenario, job: ScoringJob, place: str, attempt: int) -> None:
    os.environ["FAILPOINT"] = f"{place}:kill"
    scenario.run(job, attempt)


def _finish(scenario: Scenario, job: ScoringJob, expected: list[object]) -> None:
    """The table is the undisturbed run's; what was committed before this run is not scored in it."""
    done = {name for name, attempts in _committed(job) if attempts > scenario.retry_failed}
    answered = {row["request_hash"] for row in part_rows(job) if row["status"] == "ok"}
    scenario.run(job, 3)
    log = Path(f"{job.output_folder}.scored-3")
    scored = set(log.read_text().split()) if log.exists() else set()
    assert not scored & (done | answered), (scored, done, answered)
    assert json.loads(json.dumps(table(job))) == expected
    committed = _committed(job)
    assert len(set(committed)) == len(committed)
    assert not any(OutputFolder(job.output_folder).staging.iterdir())


def _committed(job: ScoringJob) -> list[tuple[str, int]]:
    """Each request's name, and which try it was."""
    return [(row["request_hash"], row["attempts"]) for row in part_rows(job)]


def child(action: Callable[[], object], errors: Path | None = None) -> int:
    """Returns 0, or minus the signal that ended the forked child that runs it; its standard error goes to `errors`."""
    forked = os.fork()
    if forked == 0:
        try:
            if errors is not None:
                os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])
    assert status in (0, -9), (status, errors and errors.read_text())
    return status


if __name__ == "__main__":
    for place in main(Path(sys.argv[1]), sys.argv[2]):
        sys.stdout.write(f"{place}\n")
        sys.stdout.flush()
