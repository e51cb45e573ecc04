"""Another run, which is not dead but late, commits a shard before this one does."""

from pathlib import Path
from typing import Any

import pytest

from tasks import shard_results
from tasks.infer import ShardDone, infer_shard
from tasks.job.job import ScoringJob
from tasks.plan import make_run_plan
from tasks.storage.manifests import find_manifest, manifest_path, read_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import Run, open_run
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import deduplicate_requests, extract_rows, part_rows, plan_alone

ROWS = [{"id": f"r{i}", "text": f"document {i}"} for i in range(4)]


@pytest.fixture
def job(job_of: JobMaker) -> ScoringJob:
    return job_of(ROWS, shard_seconds=1000.0, source={"id": "id"})


def commit_behind(run: Run, manifest: str | bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[ShardDone, list[Any]]:
    """The only shard, whose manifest is there once its part is; with what the store is given."""
    commit_part, given = shard_results.commit_part, list[Any]()
    planned = make_run_plan(run, deduplicate_requests(run, extract_rows(run)), FakeWorkers())
    [shard] = planned.shards
    path = manifest_path(run.folder, planned.plan_id, shard.shard_id)

    def late(*arguments: Any) -> None:
        commit_part(*arguments)
        path.write_bytes(manifest if isinstance(manifest, bytes) else manifest.encode())

    monkeypatch.setattr(shard_results, "commit_part", late)
    monkeypatch.setattr("tasks.infer.share_results", lambda *arguments: given.extend(arguments[2:]))
    return infer_shard(run, planned.plan_id, shard, FakeWorkers()), given


def test_the_one_that_is_there_counts(job: ScoringJob, monkeypatch: pytest.MonkeyPatch) -> None:
    _, planned = plan_alone(job, scored_shards=1)
    folder, [shard] = OutputFolder(job.output_folder), planned.shards
    theirs = find_manifest(folder, planned.plan_id, shard.shard_id)
    assert theirs is not None
    path = manifest_path(folder, planned.plan_id, shard.shard_id)
    content = path.read_bytes()
    expected, part = part_rows(job), (folder.parts / theirs.files[0].name).read_bytes()
    path.unlink()
    with open_run(job) as run:
        (run.folder.parts / theirs.files[0].name).write_bytes(part)
        done, [results, file] = commit_behind(run, content, monkeypatch)
        assert run.run_id != theirs.run_id
    assert (file, results.to_pylist()) == (theirs.files[0], expected)
    assert (done.requests, done.seconds) == (theirs.requests, theirs.seconds)
    assert read_manifests(folder) == [theirs]
    assert part_rows(job) == expected


@pytest.mark.fault(8)
def test_one_that_is_damaged_is_set_aside(
    job: ScoringJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with open_run(job) as run:
        done, [results, file] = commit_behind(run, "{", monkeypatch)
    folder = OutputFolder(job.output_folder)
    [manifest] = read_manifests(folder)
    assert (manifest.run_id, manifest.files) == (run.run_id, (file,))
    assert (done.requests, results.num_rows) == (4, 4)
    [bad] = folder.manifests.glob("*.bad")
    assert bad.read_text() == "{"
    assert Path(f"{folder.manifests / manifest.name}.bad") == bad
    assert "set aside as *.bad, another takes its place" in caplog.text
