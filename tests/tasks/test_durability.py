"""Damage, locks and full disks: never a wrong answer, never a lost one."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from engine.errors import UserError
from engine.failpoint import Abandoned, failpoint, forget_hits
from tasks.job.job import ScoringJob
from tasks.plan import make_run_plan
from tasks.publish import publish_results
from tasks.storage.commit import commit_file, disk_errors, open_private
from tasks.storage.manifests import read_manifests, verify_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import open_run
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import ask, deduplicate_requests, extract_rows, outcomes, plan_alone, run_steps, table

ROWS = [{"text": f"document {i}"} for i in range(40)]


@pytest.fixture
def finished(job_of: JobMaker) -> ScoringJob:
    """A job whose run has committed several shards."""
    job = job_of(ROWS, shard_seconds=1e-4)
    planned, _ = run_steps(job)
    assert len(planned.shards) > 2
    return job


def flip_byte(folder: OutputFolder) -> None:
    part = sorted(folder.parts.iterdir())[0]
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.write_bytes(content)


def truncate_part(folder: OutputFolder) -> None:
    os.truncate(sorted(folder.parts.iterdir())[0], 10)


def remove_part(folder: OutputFolder) -> None:
    sorted(folder.parts.iterdir())[0].unlink()


def first_manifest(folder: OutputFolder) -> Path:
    return sorted(folder.manifests.glob("shard-*"))[0]


def truncate_manifest(folder: OutputFolder) -> None:
    os.truncate(first_manifest(folder), 50)


def empty_manifest(folder: OutputFolder) -> None:
    os.truncate(first_manifest(folder), 0)


def foreign_manifest(folder: OutputFolder) -> None:
    first_manifest(folder).write_text('{"shard_id": "another program\'s"}')


def swapped_manifest(folder: OutputFolder) -> None:
    one, other = sorted(folder.manifests.glob("shard-*"))[:2]
    one.write_bytes(other.read_bytes())


def manifest_that_leads_outside(folder: OutputFolder) -> None:
    path = first_manifest(folder)
    content = json.loads(path.read_text())
    outside = folder.root.parent / "outside.parquet"
    outside.write_bytes((folder.parts / content["files"][0]["name"]).read_bytes())
    content["files"][0]["name"] = "../../outside.parquet"
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(flip_byte, marks=pytest.mark.fault(7)),
        pytest.param(truncate_part, marks=pytest.mark.fault(7)),
        pytest.param(remove_part, marks=pytest.mark.fault(7)),
        pytest.param(truncate_manifest, marks=pytest.mark.fault(8)),
        pytest.param(empty_manifest, marks=pytest.mark.fault(8)),
        pytest.param(foreign_manifest, marks=pytest.mark.fault(8)),
        pytest.param(swapped_manifest, marks=pytest.mark.fault(8)),
        pytest.param(manifest_that_leads_outside, marks=pytest.mark.fault(24)),
    ],
)
def test_a_damaged_shard_is_set_aside_and_scored_again(
    finished: ScoringJob, engine: FakeWorkers, damage: Callable[[OutputFolder], None], caplog: pytest.LogCaptureFixture
) -> None:
    before, folder = table(finished), OutputFolder(finished.output_folder)
    requests = read_manifests(folder)[0].requests
    engine.works.clear()
    damage(folder)
    run_steps(finished)
    assert table(finished) == before
    assert 0 < len(engine.scored) <= requests + 2
    assert len(engine.scored) < len(ROWS)
    assert list(folder.root.rglob("*.bad"))
    assert "set aside" in caplog.text


def test_readers_pass_over_damage_without_moving_anything(finished: ScoringJob) -> None:
    folder = OutputFolder(finished.output_folder)
    count = len(read_manifests(folder))
    truncate_part(folder)
    assert len(read_manifests(folder)) == count - 1
    assert not list(folder.root.rglob("*.bad"))


@pytest.mark.fault(6)
def test_what_a_killed_run_left_is_swept(finished: ScoringJob) -> None:
    folder = OutputFolder(finished.output_folder)
    (folder.staging / "half.parquet").write_bytes(b"PAR1")
    orphan = folder.parts / f"{'0' * 32}-{'0' * 16}.parquet"
    orphan.write_bytes(b"PAR1")
    run_steps(finished)
    assert not list(folder.staging.iterdir())
    assert not orphan.exists()
    assert len(verify_manifests(folder)) == len(list(folder.parts.iterdir()))


@pytest.mark.fault(8)
def test_a_damaged_run_record_hides_that_run_alone(finished: ScoringJob) -> None:
    run_steps(finished)
    [first, *_] = sorted(OutputFolder(finished.output_folder).manifests.glob("run-*"))
    first.write_text("{")
    run_steps(finished)
    assert [run["sequence"] for run in ask(finished.output_folder, "select sequence from runs")] == [2, 3]


@pytest.mark.fault(24)
def test_a_link_in_the_place_of_a_folder_is_refused(finished: ScoringJob, tmp_path: Path) -> None:
    folder = OutputFolder(finished.output_folder)
    folder.staging.rmdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    folder.staging.symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="is a link"):
        run_steps(finished)
    assert (tmp_path / "precious" / "file").exists()


@pytest.mark.fault(9)
def test_a_second_run_is_told_who_has_the_folder(finished: ScoringJob) -> None:
    with open_run(finished), pytest.raises(UserError, match=f"is in use by process {os.getpid()} on "):
        run_steps(finished)


@pytest.mark.fault(3)
def test_the_lock_dies_with_its_holder(finished: ScoringJob) -> None:
    root = str(finished.output_folder)
    hold = (
        "import sys, time; from pathlib import Path; from tasks.storage.output_folder import OutputFolder\n"
        f"with OutputFolder(Path({root!r})).locked(): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"is in use by process {holder.pid}"):
            run_steps(finished)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    run_steps(finished)


@pytest.mark.fault(10)
def test_a_stale_lock_file_with_a_living_process_id_holds_nothing(finished: ScoringJob) -> None:
    (finished.output_folder / ".lock").write_text(json.dumps({"pid": 1, "host": "here"}))
    run_steps(finished)


@pytest.mark.fault(3)
def test_a_killed_run_is_interrupted_once_another_begins(job_of: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(ROWS)
    monkeypatch.setenv("FAILPOINT", "run.ending:1:error")  # its end is not recorded, as after kill -9
    with pytest.raises(OSError, match=r"run\.ending"):
        plan_alone(job)
    monkeypatch.delenv("FAILPOINT")
    folder = OutputFolder(job.output_folder)
    [record] = folder.manifests.glob("run-*")
    assert json.loads(record.read_text())["status"] == "running"
    with open_run(job):
        assert json.loads(record.read_text())["status"] == "interrupted"


@pytest.mark.fault(11)
def test_the_clock_may_jump(finished: ScoringJob) -> None:
    with open_run(finished, clock=lambda: datetime.fromtimestamp(0, UTC)) as run:
        publish_results(run, make_run_plan(run, deduplicate_requests(run, extract_rows(run)), FakeWorkers()).plan_id)
    runs = ask(finished.output_folder, "select run_id, sequence from runs")
    assert [run["sequence"] for run in runs] == [1, 2]
    assert [run["run_id"][:10] for run in runs] == ["run-000001", "run-000002"]


FULL = r"no space left \(File too large\); free some and run the same command"


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file grows beyond `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.fault(5)
def test_a_full_disk_that_duckdb_meets_is_the_same_line(tmp_path: Path) -> None:
    with full_disk(2**16), pytest.raises(UserError, match=FULL), disk_errors(tmp_path):
        duckdb.connect(str(tmp_path / "a.duckdb")).execute("CREATE TABLE t AS SELECT range AS i FROM range(1000000)")
    with pytest.raises(duckdb.IOException), disk_errors(tmp_path):
        duckdb.connect(str(tmp_path / "none" / "a.duckdb"))


@pytest.mark.fault(5)
def test_a_full_disk_is_one_clear_line_and_the_run_goes_on_later(job_of: JobMaker, engine: FakeWorkers) -> None:
    job = job_of(ROWS, shard_seconds=1e-4)
    plan_alone(job, scored_shards=1)
    with full_disk(2000), pytest.raises(UserError, match=FULL):
        run_steps(job)
    _, published = run_steps(job)
    assert (published.results, published.missing) == (len(ROWS), 0)
    assert len(engine.scored) - len(set(engine.scored)) <= 1 * len(ROWS)


def test_commit_never_overwrites(tmp_path: Path) -> None:
    final = tmp_path / "final"
    for content, won in ((b"first", True), (b"second", False)):
        with open_private(tmp_path / "staged") as file:
            file.write(content)
        assert commit_file(tmp_path / "staged", final) is won
        assert not (tmp_path / "staged").exists()
    assert final.read_bytes() == b"first"


def test_failpoints_are_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    failpoint("here")
    monkeypatch.setenv("FAILPOINT", "here:2:error")
    failpoint("elsewhere")
    failpoint("here")
    with pytest.raises(OSError, match="failpoint here"):
        failpoint("here")
    failpoint("here")


@pytest.mark.fault(7)
def test_a_plan_is_not_taken_up_once_an_answer_that_it_left_out_is_damaged(
    job_of: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run's row is in no shard of the second's plan, which the third would go on with."""
    rows = [{"id": f"r{i}", "text": f"text {i}"} for i in range(3)]
    run_steps(job_of(rows[:1], source={"id": "id"}))
    job = job_of(rows, source={"id": "id"})
    [part] = job.output_folder.glob("parts/*.parquet")
    forget_hits()
    monkeypatch.setenv("FAILPOINT", "infer.start:1:abandon")
    with pytest.raises(Abandoned):
        run_steps(job)
    monkeypatch.delenv("FAILPOINT")
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    planned, published = run_steps(job)
    assert (planned.pending, published.missing) == (3, 0)
    assert outcomes(job) == {"r0": "ok", "r1": "ok", "r2": "ok"}
