"""Runs whose output folder is in a bucket of a real S3 server: as in a folder, on one machine and on others."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytest.importorskip("obstore", reason="an extra: pip install trunkline[s3]")

import obstore
from obstore.exceptions import GenericError

from engine.errors import UserError
from engine.failpoint import Abandoned, forget_hits
from engine.file_lock import Holder
from tasks.dry_run import plan_job
from tasks.infer import infer_shard
from tasks.job.job import ScoringJob
from tasks.plan import make_run_plan
from tasks.publish import publish_results
from tasks.report.run_list import list_runs
from tasks.storage.bucket import Bucket
from tasks.storage.bucket_errors import BucketUnavailableError, LeaseLostError
from tasks.storage.file_names import LOCK
from tasks.storage.lease import Lease, open_bucket, take_lease
from tasks.storage.manifests import commit_manifest, find_manifest, read_manifests
from tasks.storage.open_folder import folder_of, open_folder
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import open_run
from tasks.storage.stop_request import ask_to_stop, is_asked
from tests.s3_server import put_placeholder
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import TABLE, ask, deduplicate_requests, extract_rows, plan_alone, run_steps

ROWS = [{"id": f"r{i:02}", "text": f"Shared. Question {i}?" if i % 5 else None} for i in range(12)]

Here = Callable[[str], None]


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """From now on the process is on a machine of that name: each has a cache of its own."""

    def on(machine: str) -> None:
        monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / machine))

    return on


@pytest.fixture
def job(s3_url: str, all_files: None, job_of: JobMaker, tmp_path: Path) -> ScoringJob:
    return job_of(ROWS, output=f"{s3_url}/runs/{tmp_path.name}", shard_seconds=1e-4, source={"id": "id"})


def table(job: ScoringJob) -> list[dict[str, Any]]:
    return ask(job.output_place, TABLE)


def objects(job: ScoringJob) -> set[str]:
    return set(open_bucket(job.output_place).listed())


def _content(folder: OutputFolder) -> list[list[dict[str, Any]]]:
    """What the parts hold, but for who wrote it."""
    parts = [pq.read_table(path).drop_columns(["run_id"]).to_pylist() for path in folder.parts.iterdir()]
    return sorted(parts, key=str)


def test_the_same_rows_and_files_as_in_a_folder(job: ScoringJob, job_of: JobMaker, on: Here, tmp_path: Path) -> None:
    local = job_of(ROWS, output=str(tmp_path / "out"), shard_seconds=1e-4, source={"id": "id"})
    run_steps(local)
    on("one")
    planned, published = run_steps(job)
    assert (published.results, published.errors, published.missing) == (9, 3, 0)
    assert len(planned.shards) > 1
    on("another")
    assert table(job) == table(local)
    folder, beside = folder_of(job), OutputFolder(local.output_folder)
    assert _content(folder) == _content(beside)
    assert [path.name.partition("-")[0] for path in sorted(folder.manifests.iterdir())] == [
        path.name.partition("-")[0] for path in sorted(beside.manifests.iterdir())
    ]
    [run] = list_runs(folder)
    assert (run.state, run.rows_done, run.folder) == ("completed", len(ROWS), job.output_place)
    assert plan_job(job).pending == 0


def test_another_machine_goes_on_from_what_is_committed(job: ScoringJob, engine: FakeWorkers, on: Here) -> None:
    on("one")
    _, planned = plan_alone(job, scored_shards=1)
    scored = list(engine.scored)
    assert 0 < len(scored) < planned.pending
    on("another")
    _, published = run_steps(job)
    assert published.missing == 0
    assert len(engine.scored) == len(set(engine.scored)) == planned.pending, "nothing is scored twice"
    on("a third")
    run_steps(job)
    assert len(engine.scored) == planned.pending
    assert [run.state for run in list_runs(folder_of(job).look())] == ["interrupted", "completed", "completed"]


# More of them are met by the sweep of every night, which kills.
PLACES = ["bucket.clock:1", "bucket.leased:1", "bucket.committed:2", "bucket.put:9", "bucket.removed:1"]


@pytest.mark.fault(1, 3)
@pytest.mark.parametrize("place", PLACES)
def test_ended_in_the_middle_of_a_commit(
    place: str, job: ScoringJob, engine: FakeWorkers, on: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing more is committed behind it; the lease is given back, as a dead process does not."""
    on("one")
    if place.startswith("bucket.removed"):
        run_steps(job)  # whose plan the next run's takes the place of
    monkeypatch.setenv("FAILPOINT", f"{place}:abandon")
    forget_hits()
    with pytest.raises(Abandoned, match=place.partition(":")[0]):
        run_steps(job, full=place.startswith("bucket.removed"))
    monkeypatch.delenv("FAILPOINT")
    done = {one for manifest in read_manifests(folder_of(job).look()) for one in _requests(job, manifest.files[0].name)}
    scored = len(engine.scored)
    on("another")
    _, published = run_steps(job)
    assert not done & set(engine.scored[scored:])
    assert (published.results, published.errors, published.missing) == (9, 3, 0)
    assert [row["custom_id"] for row in table(job)] == [row["id"] for row in ROWS]


def _requests(job: ScoringJob, part: str) -> list[str]:
    rows: list[str] = pq.read_table(folder_of(job).parts / part).column("request_hash").to_pylist()
    return rows


def test_two_writers_of_one_manifest(job: ScoringJob, on: Here) -> None:
    """A run before, which is not dead but late, was faster: its shard is the one that counts."""
    on("one")
    plan_alone(job, scored_shards=1)
    on("another")
    here = folder_of(job)
    here.create()
    with here.locked():
        [theirs] = read_manifests(here)
        late = replace(theirs, seconds=theirs.seconds + 1)
        (here.manifests / late.name).unlink()  # it came behind the look at the bucket
        assert commit_manifest(here, late) == theirs
        assert find_manifest(here, theirs.plan_id, theirs.shard_id) == theirs
        assert (here.parts / theirs.files[0].name).is_file()
    assert not any(here.staging.iterdir())


@pytest.mark.fault(9)
def test_two_runs_at_once_never_mix(job: ScoringJob, on: Here) -> None:
    on("one")
    folder = folder_of(job)
    folder.create()
    with folder.locked():
        on("another")
        with pytest.raises(UserError, match=rf"^output: {job.output} is in use by process \d+ on .*, whose lease ends"):
            run_steps(job)
        theirs = _steal(job)
        staged = folder.staged("late.json")
        staged.write_bytes(b"late")
        with pytest.raises(LeaseLostError, match=r"the lease was lost: process 7 on elsewhere has it$"):
            folder.commit(staged, folder.manifests / "late.json")
    assert objects(job) == {".lock", ".clock"}
    theirs.release()
    run_steps(job)


def _steal(job: ScoringJob) -> Lease:
    """As if its holder had been suspended for longer than the lease: another has taken it."""
    bucket = open_bucket(job.output_place)
    found = bucket.get(LOCK)
    assert found is not None
    return take_lease(bucket, Holder(7, "elsewhere", "theirs"), ended=json.loads(found[0])["token"])


def test_a_run_in_the_middle_that_lost_its_lease(
    job: ScoringJob, engine: FakeWorkers, on: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shard is not committed, and the run that has the lease commits it."""
    on("one")
    submit, theirs = engine.submit, []

    def slow(*arguments: Any) -> Any:
        if not theirs:
            theirs.append(_steal(job))
        return submit(*arguments)

    monkeypatch.setattr(engine, "submit", slow)
    with pytest.raises(LeaseLostError):
        run_steps(job)
    assert not [name for name in objects(job) if name.startswith(("manifests/shard-", "manifests/check"))]
    theirs[0].release()
    on("another")
    assert run_steps(job)[1].missing == 0


def test_a_checkpoint_whose_answer_was_lost_is_taken_up_by_the_next_try(
    job_of: JobMaker, s3_url: str, engine: FakeWorkers, on: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on("one")
    place = f"{s3_url}/runs/{tmp_path.name}"
    job = job_of(ROWS, output=place, shard_seconds=1e3, checkpoint_seconds=1e-9, source={"id": "id"})
    put = obstore.put
    is_lost = False

    def losing(store: Any, name: str, *arguments: Any, **options: Any) -> Any:
        nonlocal is_lost
        done = None if is_lost else put(store, name, *arguments, **options)
        is_lost = is_lost or name.startswith("manifests/checkpoint-")
        if is_lost:
            raise GenericError("Generic S3 error: HTTP error: connection closed")
        return done

    with open_run(job) as run:
        planned = make_run_plan(run, deduplicate_requests(run, extract_rows(run)), engine)
        assert run.folder.bucket is not None
        with monkeypatch.context() as away:
            away.setattr(run.folder.bucket.bucket, "patience", 0.5)
            away.setattr(obstore, "put", losing)
            with pytest.raises(BucketUnavailableError):
                infer_shard(run, planned.plan_id, planned.shards[0], engine)
        assert not [*run.folder.manifests.glob("checkpoint-*")]
        engine.works.clear()
        infer_shard(run, planned.plan_id, planned.shards[0], engine)
        assert len(engine.scored) == planned.pending - 1
        publish_results(run, planned.plan_id)
    assert [row["custom_id"] for row in table(job)] == [row["id"] for row in ROWS]


def test_who_asks_a_run_on_another_machine_to_end(job: ScoringJob, on: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_LEASE_SECONDS", "3")
    on("one")
    folder = folder_of(job)
    folder.create()
    with folder.locked() as holder:
        on("another")
        there = open_folder(job.output_place).look(records_alone=True)
        found = there.holder()
        assert found == holder
        ask_to_stop(there, found)
        on("one")
        for _ in range(100):
            if is_asked(folder, holder):
                break
            threading.Event().wait(0.1)
        assert is_asked(folder, holder)
    assert there.holder() is None


def test_a_copy_is_made_what_the_bucket_has(job: ScoringJob, on: Here) -> None:
    on("one")
    run_steps(job)
    expected, there = table(job), objects(job)
    folder = folder_of(job)
    part, manifest = next(folder.parts.iterdir()), next(folder.manifests.glob("shard-*"))
    part.write_bytes(part.read_bytes()[:-1] + b"X")
    manifest.write_text("{}")
    (folder.parts / "00-0000000000000000.parquet").write_bytes(b"of nobody")
    next(folder.plans.glob("*/rows.parquet")).unlink()
    assert table(job) == expected
    assert objects(job) == there
    (folder.root / "results.duckdb").unlink()
    shutil.rmtree(folder.manifests)
    run_steps(job)
    assert table(job) == expected


@pytest.mark.fault(7, 8, 24)
def test_what_is_damaged_in_the_bucket_itself(job: ScoringJob, engine: FakeWorkers, on: Here) -> None:
    on("one")
    planned, _ = run_steps(job)
    expected = table(job)
    bucket = open_bucket(job.output_place)
    manifests = sorted(name for name in objects(job) if name.startswith("manifests/shard-"))
    bucket.put(manifests[0], b"{}")
    for name in ("plan/plan-000009-abcdef/rows.parquet", "staging/x", "manifests/a/b", ".profile", "canary"):
        bucket.put(name, b"of somebody")
    on("another")
    scored = len(engine.scored)
    run_steps(job)
    assert table(job) == expected
    assert 0 < len(engine.scored) - scored < planned.pending, "the shard of that manifest is scored again"
    there = objects(job)
    assert f"{manifests[0]}.bad" in there
    assert "plan/plan-000009-abcdef/rows.parquet" not in there, "a plan that never came to its plan.json"
    assert {"staging/x", "manifests/a/b", ".profile", "canary"} <= there, "what is not ours stays"
    copy = {path.relative_to(job.output_folder).as_posix() for path in job.output_folder.rglob("*")}
    assert not {"staging/x", "manifests/a/b", ".profile"} & copy


def test_a_reader_leaves_the_copy_of_a_run_on_its_machine(job: ScoringJob, on: Here) -> None:
    on("one")
    run_steps(job)
    folder = folder_of(job)
    with folder.locked():
        (folder.manifests / "new.json").touch()
        open_folder(job.output_place).look()
        assert (folder.manifests / "new.json").exists()
    open_folder(job.output_place).look()
    assert not (folder.manifests / "new.json").exists()


def test_a_place_where_a_run_was_killed_before_it_had_the_lock(s3_url: str, job_of: JobMaker, on: Here) -> None:
    on("one")
    Bucket(f"{s3_url}/begun", 20.0).put(".clock", b"none")
    assert run_steps(job_of(ROWS, output=f"{s3_url}/begun"))[1].missing == 0


def test_folders_that_a_console_made_are_empty(s3_url: str, job_of: JobMaker, on: Here) -> None:
    on("one")
    for key in ("console/", "console/parts/", "console/manifests/", "console/plan/"):
        put_placeholder(os.environ["AWS_ENDPOINT_URL"], key)
    job = job_of(ROWS, output=f"{s3_url}/console", source={"id": "id"})
    assert run_steps(job)[1].missing == 0
    on("another")
    assert len(table(job)) == len(ROWS)
    put_placeholder(os.environ["AWS_ENDPOINT_URL"], "theirs/pictures/")
    with pytest.raises(UserError, match="theirs holds other objects; name a new or empty one"):
        run_steps(job_of(ROWS, output=f"{s3_url}/theirs"))


def test_places_that_are_none(s3_url: str, job_of: JobMaker, on: Here) -> None:
    on("one")
    Bucket(f"{s3_url}/foreign", 20.0).put("theirs", b"")
    with pytest.raises(UserError, match=rf"^output: {s3_url}/foreign holds other objects; name a new or empty one$"):
        run_steps(job_of(ROWS, output=f"{s3_url}/foreign/"))
    for place in ("s3://", "s3:///x", "s3://b/../c", "s3://b//c", "gs://b/c"):
        with pytest.raises(UserError, match=r"output: s3://|output: gs://"):
            job_of(ROWS, output=place)
    with pytest.raises(UserError, match="store: s3://b/c is a URL; name a folder"):
        job_of(ROWS, store="s3://b/c")
    with pytest.raises(UserError, match=f"{s3_url}/new: holds no results; name the output folder of a run"):
        ask(f"{s3_url}/new", TABLE)
    assert os.listdir(job_of(ROWS, output=f"{s3_url}/new").output_folder) == [".sync"]
