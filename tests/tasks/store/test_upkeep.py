"""What a store holds, and what is removed from it while others use it."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engine.errors import UserError
from flows.store_commands import age_seconds, age_words, size_words, store_app
from tasks.job.job import ScoringJob
from tasks.store.scoring_store import STAGING, ScoringStore
from tasks.store.upkeep import choose, remove, store_stats, verify_store
from tests.tasks.steps import run_steps, table

DAY = 86_400.0


def rows(first: int, last: int) -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "text": f"document {i}"} for i in range(first, last)]


@pytest.fixture
def three(stored: Any) -> ScoringStore:
    """A store of three parts, 3 days old, 1 day old and new, the last in another precision."""
    precision = {"path": str(Path(stored("a", rows(0, 1)).model.path)), "dtype": "bfloat16"}
    seen: set[Path] = set()
    for name, days, changes in (("a", 3, {}), ("b", 1, {}), ("c", 0, {"model": precision})):
        job: ScoringJob = stored(name, rows(0, 4) if name == "a" else rows(10, 12), **changes)
        run_steps(job)
        assert job.store_folder is not None
        store = ScoringStore(job.store_folder)
        for part in {part for shelf in store.shelves() for part in shelf.parts()} - seen:
            os.utime(part, (0, time.time() - days * DAY))
            seen.add(part)
    return store


def test_stats_say_what_is_there(three: ScoringStore) -> None:
    found = {one.precision: one for one in store_stats(three)}
    assert set(found) == {"float32", "bfloat16"}
    one = found["float32"]
    assert (one.model, one.parts, one.rows, one.own, one.set_aside) == ("model", 2, 6, 0, 0)
    assert (round(one.oldest / DAY), round(one.newest / DAY)) == (3, 1)
    assert found["bfloat16"].rows == 2


def test_what_is_old_is_chosen_first(three: ScoringStore) -> None:
    parts = choose(three)
    assert [round(part.age / DAY) for part in parts] == [3, 1, 0]
    assert [part.path for part in choose(three, older_than=2 * DAY)] == [parts[0].path]
    assert [part.path for part in choose(three, keep_bytes=parts[1].size + parts[2].size)] == [parts[0].path]
    assert len(choose(three, keep_bytes=0)) == 3
    assert not choose(three, keep_bytes=2**40)
    [shelf] = {part.path.parent.name for part in parts[2:]}
    assert [part.path for part in choose(three, shelf=shelf[:12])] == [parts[2].path]
    assert len(choose(three, model="model")) == 3
    assert not choose(three, model="another")


def test_removing_leaves_output_folders_as_they_are(three: ScoringStore, stored: Any) -> None:
    job = stored("a", rows(0, 4))
    before = table(job)
    (three.root / STAGING / "left").touch()
    remove(three, choose(three))
    assert table(job) == before
    assert not three.shelves()
    assert not list((three.root / STAGING).iterdir())
    assert run_steps(stored("again", rows(0, 4)))[0].from_store == 0
    assert run_steps(stored("once more", rows(0, 4)))[0].from_store == 4


@pytest.mark.fault(7)
def test_verifying_sets_what_is_damaged_aside(three: ScoringStore) -> None:
    part = choose(three)[0].path
    part.unlink()
    part.write_bytes(b"no part")
    found = verify_store(three)
    assert (found.whole, found.damaged) == (2, (part,))
    assert verify_store(three).damaged == ()
    assert sum(one.set_aside for one in store_stats(three)) == 1
    remove(three, [])
    assert sum(one.set_aside for one in store_stats(three)) == 0


def test_removing_waits_for_those_who_use_the_store(three: ScoringStore) -> None:
    parts = choose(three)
    remover = threading.Thread(target=remove, args=(three, parts))
    with three.used(), three.used():
        remover.start()
        remover.join(0.1)
        assert remover.is_alive()
        assert all(part.path.is_file() for part in parts)
    remover.join()
    assert not any(part.path.exists() for part in parts)


def test_jobs_add_and_take_while_the_store_is_pruned(stored: Any) -> None:
    """Whatever is gone by then is scored: each job ends with all of its rows."""
    job = stored("first", rows(0, 6))
    run_steps(job)
    store = ScoringStore(job.store_folder)
    ended = threading.Event()

    def prune() -> None:
        while not ended.is_set():
            remove(store, choose(store))

    pruning = threading.Thread(target=prune)
    pruning.start()
    try:
        for number in range(4):
            planned, published = run_steps(stored(f"job-{number}", rows(0, 6)))
            assert planned.from_store + planned.pending == published.results == 6
    finally:
        ended.set()
        pruning.join()


def test_the_commands(three: ScoringStore) -> None:
    def said(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(store_app, [*arguments[:1], str(three.root), *arguments[1:]])
        assert done.exit_code == code, done.output
        return " ".join(done.output.split())

    assert "float32" in said("stats")
    assert said("verify") == "3 parts are whole, 0 were set aside as *.bad"
    dry = said("prune", "--older-than", "2d", "--dry-run")
    assert dry == "would remove 1 parts of under 0.1 MiB; 0.0 MiB of it are in no output folder"
    assert len(choose(three)) == 3
    assert said("prune", "--older-than", "2d").startswith("removed 1 parts")
    assert len(choose(three)) == 2
    choose(three)[0].path.unlink()
    choose(three)[0].path.write_bytes(b"")
    assert "1 were set aside" in said("verify", code=1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["stats", "nowhere"], "nowhere: is no scoring store"),
        (["prune", "nowhere", "--keep-gib", "1"], "nowhere: is no scoring store"),
        (["prune", "nowhere"], "say what to remove"),
    ],
)
def test_what_is_asked_wrongly_is_said(arguments: list[str], error: str) -> None:
    done = CliRunner().invoke(store_app, arguments)
    assert isinstance(done.exception, UserError)
    assert error in str(done.exception)


def test_ages_and_sizes_are_a_persons() -> None:
    assert (age_seconds("30d"), age_seconds("12h"), age_seconds("90m"), age_seconds("2w")) == (
        30 * DAY,
        43200,
        5400,
        14 * DAY,
    )
    assert [age_words(seconds) for seconds in (60, 3 * 3600, 3 * DAY)] == ["1m", "3h", "3d"]
    assert (size_words(2**20), size_words(3 * 2**30)) == ("1.0 MiB", "3.0 GiB")
    with pytest.raises(UserError, match="write it like 30d"):
        age_seconds("a month")
