"""A notebook that has `results.duckdb` open reads on what it opened, while one run more publishes."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

import duckdb
import pytest

from tasks.plan import make_run_plan
from tasks.publish import publish_results
from tasks.query import query
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import open_run
from tasks.storage.run_record import read_records, record_path
from tasks.storage.stored_plan import plan_folder, plan_ids
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import ask, deduplicate_requests, extract_rows, run_steps
from tests.tasks.test_checkpoints import EACH_ROW, files, rows, stopped

READ = ("from results order by row_index", "from errors", "from agreement('this', 'this')")


@contextmanager
def opened(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    settings = {"file_search_path": str(folder)}
    with duckdb.connect(str(folder / "results.duckdb"), read_only=True, config=settings) as connection:
        yield connection


def read(connection: duckdb.DuckDBPyConnection) -> list[list[Any]]:
    return [connection.sql(sql).fetchall() for sql in READ]


@pytest.mark.parametrize("second", [4, 6], ids=["nothing to do", "two more rows"])
def test_the_next_run(job_of: JobMaker, second: int) -> None:
    job = job_of(rows(4), source={"id": "id"})
    run_steps(job)
    with opened(job.output_folder) as connection:
        before = read(connection)
        run_steps(job_of(rows(second), source={"id": "id"}))
        assert read(connection) == before
    with opened(job.output_folder) as connection:
        assert len(read(connection)[0]) == second
    run_steps(job_of(rows(7), source={"id": "id"}))
    run_steps(job_of(rows(8), source={"id": "id"}))
    assert len(plan_ids(OutputFolder(job.output_folder))) == 2


PLACES = ["plan.staged", "plan.renamed", "infer.done", "publish.start", "publish.staged", "publish.recorded"]


@pytest.mark.fault(1)
@pytest.mark.parametrize("place", [*PLACES, "publish.done"])
@pytest.mark.parametrize("third", [6, 8], ids=["the same table", "another"])
def test_a_run_that_is_killed_between(
    job_of: JobMaker, monkeypatch: pytest.MonkeyPatch, place: str, third: int
) -> None:
    job = job_of(rows(4), source={"id": "id"})
    run_steps(job)
    with opened(job.output_folder) as connection:
        before = read(connection)
        stopped(job_of(rows(6), source={"id": "id"}), monkeypatch, place)
        assert read(connection) == before
        has_published = place in ("publish.recorded", "publish.done")
        if not (has_published and third == 8):  # else two have published others' rows by then
            run_steps(job_of(rows(third), source={"id": "id"}))
            assert read(connection) == before
    assert len(plan_ids(OutputFolder(job.output_folder))) == 2


@pytest.mark.fault(1)
def test_checkpoints_that_it_names(job_of: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run ends their shard, is killed before it publishes, and another one publishes."""
    job = job_of(rows(8), **EACH_ROW)
    stopped(job, monkeypatch, "infer.scored")
    with suppress(KeyboardInterrupt), open_run(job) as run:
        planned = make_run_plan(run, deduplicate_requests(run, extract_rows(run)), FakeWorkers())
        publish_results(run, planned.plan_id)
        raise KeyboardInterrupt
    folder = OutputFolder(job.output_folder)
    with opened(job.output_folder) as connection:
        before = read(connection)
        assert len(before[0]) == 8
        stopped(job, monkeypatch, "infer.done")
        run_steps(job_of(rows(9), **EACH_ROW))
        assert read(connection) == before
        assert len(files(folder, "checkpoint")) == 8
    for count in (10, 11):
        run_steps(job_of(rows(count), **EACH_ROW))
    assert files(folder, "checkpoint") == []


def test_own_checkpoints_go_at_once(job_of: JobMaker) -> None:
    """No view that was published names them."""
    job = job_of(rows(8), **EACH_ROW)
    run_steps(job)
    assert files(OutputFolder(job.output_folder), "checkpoint") == []


def test_the_plan_of_before_is_never_taken_for_the_newest(job_of: JobMaker) -> None:
    """Neither where the newest run's record is gone, nor, without a word, where its plan is."""
    run_steps(job_of(rows(4), source={"id": "id"}))
    job = job_of(rows(6), source={"id": "id"})
    run_steps(job)
    folder = OutputFolder(job.output_folder)
    record_path(folder, read_records(folder)[-1]).unlink()
    assert ask(folder.root, "select count(*) as n from results") == [{"n": 6}]
    run_steps(job)
    newest = plan_ids(folder)[-1]
    rmtree(plan_folder(folder, newest))
    with query(folder.root, "select count(*) from results") as result:
        assert f"plan/{newest} is gone; mend it" in str(result.warning)
    run_steps(job)
    with query(folder.root, "select count(*) as n from results") as result:
        assert result.warning is None
        assert result.table().to_pylist() == [{"n": 6}]
