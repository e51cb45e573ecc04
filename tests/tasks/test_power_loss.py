"""The power is lost at every moment of a run: a re-run ends as if it had not been, and scores nothing twice."""

import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.deduplicate import deduplicate_requests
from tasks.extract import extract_rows
from tasks.infer import infer_shard
from tasks.job.job import ScoringJob
from tasks.plan import make_run_plan
from tasks.publish import publish_results
from tasks.storage.run import open_run
from tests.tasks import steps
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.power_loss import FATES, Disk, Fate, Moment, restore
from tests.tasks.steps import run_steps, table, use_fakes

pytestmark = [
    pytest.mark.fault(1, 6),
    pytest.mark.usefixtures("all_files"),
    pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which file is synced"),
]

ROWS = [
    *({"id": f"r{i}", "text": f"document {i}"} for i in range(6)),
    {"id": "same", "text": "document 1"},
    {"id": "empty", "text": None},
    {"id": "bad", "text": "unlucky"},
]
PUBLISHED = "published"


class PowerLoss:
    """A job that was recorded, and what it ends as on what its disk may hold of it."""

    def __init__(self, job_of: JobMaker, engine: FakeWorkers, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self._job_of, self._patch, self._folder = job_of, patch, folder
        self.disk = Disk(folder / "disk")
        self.disk.root.mkdir()
        job = self._job(self.disk.root, ROWS)
        with self.disk.recording():
            self._run(job, engine)
            self._run(job, engine)  # what a run does on a folder that is done
        self.table = table(job)
        assert len(engine.scored) == len(set(engine.scored)) == 7

    def _job(self, root: Path, rows: list[dict[str, Any]] | None = None) -> ScoringJob:
        source = {"parquet": str(self._folder / "rows.parquet"), "id": "id"}
        given = {"output": str(root / "out"), "store": str(root / "store"), "engine": {"device": "cpu"}}
        return self._job_of(rows, source=source, shard_seconds=1e-4, **given)

    def _run(self, job: ScoringJob, engine: FakeWorkers) -> None:
        with open_run(job, retry_failed=False) as run, steps.workers_of(run) as workers:
            planned = make_run_plan(run, deduplicate_requests(run, extract_rows(run)), workers)
            for shard in planned.shards:
                infer_shard(run, planned.plan_id, shard, workers)
                self.disk.promised |= {*engine.scored}
            publish_results(run, planned.plan_id)
            self.disk.promised.add(PUBLISHED)

    def check(self, moment: Moment, fate: Fate, seed: int) -> None:
        root = self._folder / "restored"
        shutil.rmtree(root, ignore_errors=True)
        restore(moment, self.disk.root.stat().st_ino, root, fate, random.Random(seed))
        engine, job = FakeWorkers(), self._job(root)
        use_fakes(self._patch, engine)
        if PUBLISHED in moment.promised:
            assert table(job) == self.table, "what was published is lost"
        run_steps(job)
        assert table(job) == self.table
        again = moment.promised & {*engine.scored}
        assert not again, "scored twice, though committed"


@pytest.fixture
def lost(job_of: JobMaker, engine: FakeWorkers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PowerLoss:
    return PowerLoss(job_of, engine, monkeypatch, tmp_path)


def test_at_some_moments(lost: PowerLoss) -> None:
    """Every sixth, with each fate in turn."""
    moments = lost.disk.moments
    assert len(moments) > 60
    for number in range(0, len(moments), 6):
        lost.check(moments[number], FATES[number // 6 % len(FATES)], number)
    lost.check(moments[-1], "lost", 0)


@pytest.mark.nightly
@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("seed", range(3))
def test_at_every_moment(lost: PowerLoss, fate: Fate, seed: int) -> None:
    for number, moment in enumerate(lost.disk.moments):
        lost.check(moment, fate, 1000 * seed + number)
