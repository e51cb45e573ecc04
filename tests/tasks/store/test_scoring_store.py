"""Results over jobs and folders: found where all that decides is the same, kept whole, never in anybody's way."""

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from engine.errors import UserError
from tasks.check import check_job
from tasks.dry_run import plan_job
from tasks.job.job import ScoringJob
from tasks.storage.commit import sha256_of
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run_record import read_records
from tasks.store.scoring_store import ScoringStore, Shelf
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import ask, outcomes, run_steps, table

GENERATE = {"type": "generate"}
ROWS = [{"id": f"r{i}", "text": f"document {i}"} for i in range(12)]


def shelves(job: ScoringJob) -> list[Shelf]:
    assert job.store_folder is not None
    return ScoringStore(job.store_folder).shelves()


def parts(job: ScoringJob) -> list[Path]:
    return [part for shelf in shelves(job) for part in shelf.parts()]


def test_another_folder_takes_what_is_known_and_scores_what_is_new(stored: Any, engine: FakeWorkers) -> None:
    first = stored("first", ROWS[:8])
    run_steps(first)
    engine.works.clear()
    second = stored("second", ROWS)
    planned, published = run_steps(second)
    assert (planned.committed, planned.from_store, planned.pending) == (0, 8, 4)
    assert (len(engine.scored), published.results, published.missing) == (4, 12, 0)
    plain = stored("plain", ROWS, store=None)
    run_steps(plain)
    assert table(second) == table(plain)


def test_a_run_says_what_it_took(stored: Any) -> None:
    run_steps(stored("first", ROWS[:8]))
    job = stored("second", [*ROWS, {"id": "same", "text": "document 1"}, {"id": "none", "text": None}])
    planned, published = run_steps(job)
    assert (planned.rows, planned.rejected, planned.equal_rows) == (14, 1, 1)
    assert planned.said_of_requests == "0 done before, 8 found in the store, 4 to score"
    [record] = read_records(OutputFolder(job.output_folder))
    assert (record.from_store, record.committed_before, record.pending, record.scored) == (8, 0, 4, 4)
    [shard] = ask(job.output_folder, "select * from shards where from_store > 0")
    assert (shard["requests"], shard["rows"], shard["computed_prompt_tokens"]) == (8, 9, 0)
    [own] = ask(job.output_folder, "select * from runs")
    assert {row["run_id"] for row in ask(job.output_folder, "select run_id from results")} == {own["run_id"]}
    assert published.unique_prompt_tokens == sum(len(ROWS[i]["text"]) for i in range(8, 12))


def test_what_the_folder_has_is_not_looked_for(stored: Any) -> None:
    job = stored("first", ROWS)
    run_steps(job)
    planned, _ = run_steps(job)
    assert (planned.committed, planned.from_store, planned.pending) == (12, 0, 0)


@pytest.mark.parametrize("gone", ["folder", "store"])
def test_neither_needs_the_other(stored: Any, engine: FakeWorkers, gone: str) -> None:
    """A folder that is deleted leaves the store whole, and a store that is deleted each folder."""
    first, second = stored("first", ROWS), stored("second", ROWS)
    run_steps(first)
    run_steps(second)
    before = table(second)
    shutil.rmtree(first.output_folder if gone == "folder" else first.store_folder)
    engine.works.clear()
    assert table(second) == before
    planned, _ = run_steps(stored("third", ROWS))
    assert planned.from_store == (12 if gone == "folder" else 0)
    assert len(engine.scored) == (0 if gone == "folder" else 12)


def test_a_part_takes_no_room_while_the_folder_is_there(stored: Any) -> None:
    job = stored("first", ROWS)
    run_steps(job)
    [part] = parts(job)
    assert os.stat(part).st_nlink == 2


def test_a_store_on_another_disk_has_a_copy(stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def across(source: Path, target: Path) -> None:
        if source.parent.name == "parts":
            raise OSError(18, "Invalid cross-device link")
        link(source, target)

    monkeypatch.setattr("os.link", across)
    job = stored("first", ROWS)
    run_steps(job)
    [part] = parts(job)
    assert (os.stat(part).st_nlink, os.stat(part).st_mode & 0o777) == (1, 0o600)
    assert run_steps(stored("second", ROWS))[0].from_store == 12


def test_errors_are_not_stored(stored: Any, engine: FakeWorkers) -> None:
    rows = [*ROWS[:3], {"id": "bad", "text": "an unlucky row"}]
    run_steps(stored("first", rows))
    engine.heals = True
    second = stored("second", rows)
    planned, _ = run_steps(second)
    assert (planned.from_store, planned.pending) == (3, 1)
    assert set(outcomes(second).values()) == {"ok"}


def test_what_is_drawn_afresh_is_not_stored(stored: Any) -> None:
    unseeded, seeded = {"temperature": 1.0}, {"temperature": 1.0, "seed": 1}
    job = stored("first", ROWS, task=GENERATE, sampling=unseeded)
    run_steps(job)
    assert parts(job) == []
    assert run_steps(stored("second", ROWS, task=GENERATE, sampling=unseeded))[0].from_store == 0
    run_steps(stored("third", ROWS, task=GENERATE, sampling=seeded))
    assert run_steps(stored("fourth", ROWS, task=GENERATE, sampling=seeded))[0].from_store == 12


def test_of_rows_that_ask_differently_some_are_stored(stored: Any) -> None:
    rows = [row | {"how": '{"seed": 1}' if i % 2 else None} for i, row in enumerate(ROWS)]
    sampling = {"temperature": 1.0, "column": "how"}
    job = stored("first", rows, task=GENERATE, sampling=sampling)
    run_steps(job)
    [part] = parts(job)
    assert pq.read_metadata(part).num_rows == 6
    assert run_steps(stored("second", rows, task=GENERATE, sampling=sampling))[0].from_store == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"dtype": "bfloat16"}},
        {"task": {"type": "choice", "labels": [" a", " b"]}},
        {"prompt": {"template": "{{ text }}."}},
    ],
    ids=["precision", "labels", "prompt"],
)
def test_answers_to_something_else_are_not_taken(stored: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    run_steps(stored("first", ROWS))
    if "model" in changes:
        changes = {"model": {"path": str(tmp_path / "model"), **changes["model"]}}
    job = stored("second", ROWS, **changes)
    assert run_steps(job)[0].from_store == 0
    assert len(shelves(job)) == (2 if "model" in changes else 1)


def test_full_asks_neither_the_folder_nor_the_store(stored: Any, engine: FakeWorkers) -> None:
    job = stored("first", ROWS)
    run_steps(job)
    before = table(job)
    engine.works.clear()
    planned, published = run_steps(job, full=True)
    assert (planned.committed, planned.from_store, planned.pending, len(engine.scored)) == (0, 0, 12, 12)
    assert (published.results, published.missing) == (12, 0)
    assert {row["attempts"] for row in table(job)} == {2}
    assert [row | {"attempts": 1} for row in table(job)] == before
    engine.works.clear()
    assert run_steps(job)[0].committed == 12
    assert not engine.scored


@pytest.mark.fault(7)
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_part_is_set_aside_and_its_rows_are_scored(stored: Any, engine: FakeWorkers, damage: str) -> None:
    first = stored("first", ROWS)
    run_steps(first)
    run_steps(stored("more", [*ROWS, {"id": "x", "text": "one more"}]))
    part = next(part for part in parts(first) if pq.read_metadata(part).num_rows == 12)
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.unlink()  # what the folder has stays as it is
    part.write_bytes({"flip": bytes(content), "cut": bytes(content[:-9]), "empty": b""}[damage])
    engine.works.clear()
    job = stored("second", [*ROWS, {"id": "x", "text": "one more"}])
    planned, _ = run_steps(job)
    assert (planned.from_store, len(engine.scored)) == (1, 12)
    assert part.with_name(f"{part.name}.bad").is_file()
    plain = stored("plain", [*ROWS, {"id": "x", "text": "one more"}], store=None)
    run_steps(plain)
    assert table(job) == table(plain)


def test_a_part_of_an_earlier_version_is_taken(stored: Any, tmp_path: Path) -> None:
    job = stored("first", ROWS)
    run_steps(job)
    [part] = parts(job)
    staged = tmp_path / "earlier.parquet"
    pq.write_table(pq.read_table(part).drop_columns(["logprob", "is_greedy", "embedding"]), staged)
    staged.rename(part.with_name(f"{sha256_of(staged)}.parquet"))
    part.unlink()
    second = stored("second", ROWS)
    assert run_steps(second)[0].from_store == 12
    assert table(second) == table(job)


def test_a_plan_counts_what_the_store_has_and_writes_nothing(stored: Any, tmp_path: Path) -> None:
    job = stored("first", ROWS[:8])
    plan_job(job)
    assert not (tmp_path / "store").exists()
    run_steps(job)
    report = plan_job(stored("second", ROWS))
    assert (report.committed, report.from_store, report.pending) == (0, 8, 4)
    assert "0 have an answer already, 8 more in the store" in str(report)
    assert not (tmp_path / "second").exists()


def test_a_store_that_cannot_be_written_to_costs_no_result(
    stored: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ScoringStore, "add", full)
    _, published = run_steps(stored("first", ROWS))
    assert published.results == 12
    assert "results are in the output folder alone" in caplog.text


@pytest.mark.parametrize(("place", "said"), [("file", "is a file"), ("others", "holds other files")])
def test_a_folder_of_something_else_is_refused(stored: Any, tmp_path: Path, place: str, said: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "theirs").touch()
    with pytest.raises(UserError, match=said):
        check_job(stored("first", ROWS, store=str(tmp_path / place)))
