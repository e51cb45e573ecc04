"""Runs whose bucket goes away in the middle, or while they end, on a real S3 server."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore", reason="an extra: pip install trunkline[s3]")

import obstore
from obstore.exceptions import GenericError

from engine.errors import UserError
from engine.file_lock import HeldError, Holder
from tasks.job.job import ScoringJob
from tasks.plan import make_run_plan
from tasks.publish import publish_results
from tasks.report.run_list import list_runs
from tasks.storage.bucket import Bucket, Listed
from tasks.storage.bucket_errors import BucketUnavailableError, LeaseLostError
from tasks.storage.file_names import CURVE, LOCK, PROGRESS
from tasks.storage.lease import open_bucket, take_lease
from tasks.storage.open_folder import folder_of
from tasks.storage.run import Run, open_run
from tasks.storage.run_progress import RunProgress, write_progress
from tasks.storage.step_curve import StepCurve, write_curve
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import deduplicate_requests, extract_rows, run_steps


@pytest.fixture
def job(s3_url: str, all_files: None, job_of: JobMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScoringJob:
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "one"))
    return job_of([{"id": f"r{i}", "text": f"text {i}"} for i in range(3)], output=f"{s3_url}/outages/{tmp_path.name}")


@contextmanager
def away(*names: str) -> Iterator[list[str]]:
    """No PUT of one of these objects, or of any, is answered; those that were asked for."""
    put, asked = obstore.put, list[str]()

    def broken(store: Any, name: str, *arguments: Any, **options: Any) -> Any:
        asked.append(name)
        if not names or name in names:
            raise GenericError("Generic S3 error: HTTP error: error sending request")
        return put(store, name, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(obstore, "put", broken)
        yield asked


def _impatient(run: Run) -> None:
    assert run.folder.bucket is not None
    run.folder.bucket.bucket.patience = 0.0


def test_what_decides_nothing_fails_no_run_that_has_finished(
    job: ScoringJob, engine: FakeWorkers, caplog: pytest.LogCaptureFixture
) -> None:
    run_steps(job)
    with away(CURVE, PROGRESS) as asked, open_run(job) as run:
        planned = make_run_plan(run, deduplicate_requests(run, extract_rows(run)), engine)
        _impatient(run)
        write_curve(run.folder, StepCurve(run.run_id))
        assert publish_results(run, planned.plan_id).missing == 0
        write_progress(run.folder, RunProgress(run.run_id, "publishing", 1.0))
    assert {CURVE, PROGRESS} <= {*asked}
    assert [one.state for one in list_runs(folder_of(job))] == ["completed", "completed"]
    assert "the curve of steps is not told: output: s3://" in caplog.text
    assert "the last progress is not told: output: s3://" in caplog.text


@pytest.mark.fault(9)
def test_who_lost_the_lease_writes_over_nothing_of_the_next_run(
    job: ScoringJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_LEASE_SECONDS", "3")
    bucket = open_bucket(job.output_place)

    def lose() -> None:
        found = bucket.get(LOCK)
        assert found is not None
        take_lease(bucket, Holder(7, "elsewhere", "theirs"), ended=json.loads(found[0])["token"])
        bucket.put(CURVE, b"theirs")
        for thread in threading.enumerate():
            if thread.name == "lease":  # which ends when it finds another's token
                thread.join(timeout=60)

    def run() -> None:
        with open_run(job) as run:
            lose()
            write_curve(run.folder, StepCurve(run.run_id))

    with pytest.raises(LeaseLostError):
        run()
    found = bucket.get(CURVE)
    assert found is not None
    assert found[0] == b"theirs"


def test_a_lease_that_begins_tells_no_progress_of_before(job: ScoringJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is as it was when this machine had the folder last; another has had it since."""
    run_steps(job)
    folder, bucket = folder_of(job), open_bucket(job.output_place)
    bucket.put(PROGRESS, b"of another machine")
    listed, beat = Bucket.listed, list[str]()
    monkeypatch.setenv("TRUNKLINE_LEASE_SECONDS", "1")

    def slow(self: Bucket) -> dict[str, Listed]:
        time.sleep(0.3)  # a renewal is due each twelfth of a second
        return listed(self)

    monkeypatch.setattr(Bucket, "listed", slow)
    with folder.locked():
        beat.append(folder.progress.read_text())
    assert beat == ["of another machine"]


@pytest.mark.fault(9)
def test_of_another_machine_that_shares_the_cache_nobody_is_dead(
    job: ScoringJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock of the file is one that this machine does not see."""
    run_steps(job)
    folder, bucket = folder_of(job), open_bucket(job.output_place)
    theirs = Holder(7, "another", "theirs")
    lease = take_lease(bucket, theirs, None)
    (folder.root / LOCK).write_text(json.dumps({"pid": 7, "host": "another", "token": "theirs"}))
    with pytest.raises(UserError, match="is in use by process 7 on another, whose lease ends in"), folder.locked():
        pass
    with pytest.raises(HeldError):
        take_lease(bucket, Holder(8, "a third", ""), None)
    lease.check(anew=True)
    (folder.root / LOCK).write_text(json.dumps({"pid": 7, "host": "another", "token": "theirs"}))
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    with folder.locked():
        pass


@pytest.mark.parametrize("tidies_up", [False, True])
def test_who_ends_a_run_waits_for_no_bucket(job: ScoringJob, monkeypatch: pytest.MonkeyPatch, tidies_up: bool) -> None:
    """What could not be told or tidied up behind Ctrl-C does not take its place."""
    monkeypatch.setattr("tasks.storage.bucket.PATIENCE", 20.0)
    monkeypatch.setattr("tasks.storage.bucket.FIRST_PATIENCE", 0.3)
    began = 0.0

    def run() -> None:
        nonlocal began
        with ExitStack() as outage, open_run(job) as run:
            outage.enter_context(away())
            began = time.monotonic()
            try:
                raise KeyboardInterrupt
            finally:
                if tidies_up:
                    assert run.folder.bucket is not None
                    run.folder.hurry()
                    run.folder.bucket.put(run.folder.progress, PROGRESS)

    with pytest.raises(KeyboardInterrupt) as ended:
        run()
    assert time.monotonic() - began < 3
    assert isinstance(ended.value.__cause__, BucketUnavailableError)


def test_an_outage_alone_is_no_ctrl_c(job: ScoringJob) -> None:
    def run() -> None:
        with ExitStack() as outage, open_run(job) as run:
            outage.enter_context(away())
            _impatient(run)
            assert run.folder.bucket is not None
            run.folder.bucket.put(run.folder.progress, PROGRESS)

    with pytest.raises(BucketUnavailableError):
        run()
