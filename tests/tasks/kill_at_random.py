"""kill -9 at random moments of runs on a model: of the run, of its engine's process, and of both.

Each run computes texts and choices in an engine's process, three shards at once as the flow does. It is killed, and run
again; then no row may be lost, doubled or changed. Two thirds of the kills come at any moment of a run, the others
within milliseconds of a commit, while shards are committed and while results are published.

A program of its own, so that nothing has a thread when it forks: each run is a forked child with its imports done.
`python -m tests.tasks.kill_at_random --kills 100` prints how many kills hit work in progress.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import pandas  # noqa: F401  # or pyarrow would import it, in every child
import psutil
import pytest
import typer

import engine.loop.build  # noqa: F401  # what the engine's process needs
from engine.errors import EngineDeadError
from engine.plan import Shard
from engine.process import child
from tasks.deduplicate import deduplicate_requests
from tasks.engine_process.engine_process import EngineProcess
from tasks.extract import extract_rows
from tasks.infer import infer_shard
from tasks.job.job import ScoringJob
from tasks.plan import make_run_plan
from tasks.publish import publish_results
from tasks.storage import commit
from tasks.storage.run import Run, open_run
from tests.tasks.fakes import job_content
from tests.tasks.forked_process import ForkedProcess
from tests.tasks.steps import make_job, part_rows, table
from tests.tiny_model import write_tiny_model

TARGETS = ("run", "engine", "both")
MOMENTS = ("any", "commit", "any", "any", "publish", "any")
AT_ONCE, TRIES = 3, 4
# Of what a row says; the rest counts work, which is other work after a kill.
SAID = ("custom_id", "status", "task", "generated_text", "finish_reason", "label", "error_type", "completion_tokens")


@dataclass(frozen=True, slots=True)
class Kill:
    target: str
    moment: str


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """What a whole run says of each row, how long it takes, and how often it syncs: `c` in a shard, `p` at its end."""

    rows: list[dict[str, object]]
    seconds: float
    syncs: Counter[bytes]


def main(kills: Annotated[int, typer.Option()] = 100, seed: Annotated[int, typer.Option()] = 0) -> None:
    # Not a TemporaryDirectory, whose exit function a forked child would call.
    folder = Path(tempfile.mkdtemp(prefix="trunkline-kills-"))
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        sys.stdout.write(_kill_all(folder, kills, random.Random(seed)))
    finally:
        shutil.rmtree(folder)


def _kill_all(folder: Path, kills: int, draw: random.Random) -> str:
    _forked(lambda: _prepare(folder)).end()
    _whole(folder, "first")  # measures what later runs find measured
    expected = _whole(folder, "expected")
    hits: Counter[Kill] = Counter()
    planned = [Kill(TARGETS[n % 3], MOMENTS[(n + n // 3) % len(MOMENTS)]) for n in range(kills)]
    for number, kill in enumerate(planned):
        hits[kill] += _survives(folder, f"out-{number}", kill, expected, draw)
        shutil.rmtree(folder / f"out-{number}")
    return _report(planned, hits, expected)


def _report(planned: Sequence[Kill], hits: Counter[Kill], expected: Undisturbed) -> str:
    lines = [f"{len(planned)} kills, {hits.total()} of them in work in progress; {len(expected.rows)} rows each time:"]
    lines[0] += " none lost, none doubled, none changed"
    for kill, count in Counter(planned).items():
        lines.append(f"{kill.target:7} {kill.moment:8} {hits[kill]} of {count}")
    return "\n".join(lines) + "\n"


class Forked:
    """A child of this process that runs `action`, and can tell of its syncs."""

    def __init__(self, action: Callable[[int], None]) -> None:
        self.told, tell = os.pipe()
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.told)
                action(tell)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os.close(tell)

    def wait_for(self, kind: bytes, count: int) -> None:
        """Until it has told of so many syncs of a kind, or has ended."""
        while count and (told := os.read(self.told, 1)):
            count -= told == kind

    def end(self, *, killed: bool = False) -> Counter[bytes]:
        """Waits for it. Returns the syncs that it had still to tell."""
        syncs: Counter[bytes] = Counter()
        while told := os.read(self.told, 1):
            syncs[told] += 1
        os.close(self.told)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert status == (-signal.SIGKILL if killed else 0), status
        return syncs


def _forked(action: Callable[[], None]) -> Forked:
    return Forked(lambda _: action())


def _prepare(folder: Path) -> None:
    write_tiny_model(folder / "model")
    stems = ("The parcel came late and the box was open.", "A kind answer within the hour, thank you.")
    rows = [
        {
            "id": f"r{i:02}",
            "text": f"{stems[i % 2]} Case {i // 3}. Is this good or bad?" if i % 12 else None,
            "ask": "choice" if i % 3 else None,
        }
        for i in range(60)
    ]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _job(folder: Path, output: str) -> ScoringJob:
    source = {"jsonl": str(folder / "rows.jsonl"), "id": "id"}
    task = {"type": "generate", "column": "ask", "labels": [" good", " bad"]}
    content = job_content(folder, source, output=str(folder / output), task=task, shard_seconds=1e-6)
    return make_job(content | {"sampling": {"max_tokens": 12, "ignore_eos": True}})


def _run(job: ScoringJob, tell: int) -> None:
    """As the flow does, with an engine's process that is forked."""
    patch = pytest.MonkeyPatch()
    names = {name: getattr(subprocess, name) for name in ("DEVNULL", "TimeoutExpired")}
    patch.setattr(child, "subprocess", SimpleNamespace(Popen=ForkedProcess, **names))
    kind, fsync = [b"c"], commit.fsync

    def told(path: Path) -> None:
        os.write(tell, kind[0])
        fsync(path)

    patch.setattr(commit, "fsync", told)
    with open_run(job) as run, EngineProcess(run.model, run.config) as workers:
        planned = make_run_plan(run, deduplicate_requests(run, extract_rows(run)), workers)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda shard: _infer(run, planned.plan_id, shard, workers), planned.shards))
        kind[0] = b"p"
        publish_results(run, planned.plan_id)


def _infer(run: Run, plan_id: str, shard: Shard, workers: EngineProcess) -> None:
    for tries in range(TRIES):
        try:
            infer_shard(run, plan_id, shard, workers)
            return
        except EngineDeadError:
            if tries == TRIES - 1:
                raise


def _whole(folder: Path, output: str) -> Undisturbed:
    job, found = _job(folder, output), folder / f"{output}.json"
    running = Forked(lambda tell: _run(job, tell))
    syncs = running.end()
    seconds = time.monotonic() - running.started
    _forked(lambda: _read(job, found)).end()
    return Undisturbed(json.loads(found.read_text()), seconds, syncs)


def _read(job: ScoringJob, into: Path) -> None:
    """What is published, each request of which is committed once."""
    committed = [(row["request_hash"], row["attempts"]) for row in part_rows(job)]
    assert len(set(committed)) == len(committed), "a request is committed twice"
    into.write_text(json.dumps([{key: row[key] for key in SAID} for row in table(job)]))


def _survives(folder: Path, output: str, kill: Kill, expected: Undisturbed, draw: random.Random) -> bool:
    """Whether a run's work was in progress. Asserts that the next run ends with the rows of an undisturbed one."""
    job = _job(folder, output)
    running = Forked(lambda tell: _run(job, tell))
    if kill.moment == "any":
        time.sleep(draw.uniform(0, expected.seconds))
    else:
        kind = b"c" if kill.moment == "commit" else b"p"
        running.wait_for(kind, draw.randint(1, expected.syncs[kind]))
        time.sleep(draw.uniform(0, 0.003))
    engines = psutil.Process(running.pid).children()
    alive = psutil.Process(running.pid).status() != psutil.STATUS_ZOMBIE
    of_engine = [one for one in engines if one.status() != psutil.STATUS_ZOMBIE]
    if kill.target != "run":
        for one in of_engine:
            one.kill()
    if kill.target != "engine" and alive:
        os.kill(running.pid, signal.SIGKILL)
    running.end(killed=alive and kill.target != "engine")
    assert not psutil.wait_procs(engines, 10)[1], "an engine outlives its run"
    again = _whole(folder, output)
    assert again.rows == expected.rows, (kill, output)
    return alive and (kill.target != "engine" or bool(of_engine))


if __name__ == "__main__":
    typer.run(main)
