"""Whatever stands in the place of a file of ours: a query says what is missing, and the next run mends it."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import UserError
from tasks.job.job import ScoringJob
from tasks.query import query
from tasks.storage.damage import DamagedError
from tasks.storage.output_folder import OutputFolder
from tasks.storage.stored_json import read_json, stage_json
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import plan_alone, run_steps, table

ROWS = [{"text": f"document {i}"} for i in range(40)]
COUNT = "select (select count(*) from results) as n"

# What a run keeps, by where it lies.
KEPT = {
    "manifest": "manifests/shard-*.json",
    "part": "parts/*.parquet",
    "run record": "manifests/run-*.json",
    "plan.json": "plan/plan-*/plan.json",
    "rows": "plan/plan-*/rows.parquet",
    "requests": "plan/plan-*/requests.parquet",
    "nodes": "plan/plan-*/nodes.parquet",
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)

Damage = Callable[[Path], None]


def as_json(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """Puts something else in a file's place: drawn bytes or JSON, a piece of it, a changed byte or key, a folder."""
    kind = draw(st.sampled_from(["bytes", "json", "cut", "flip", "key", "folder", "link", "gone"]))
    content, value = draw(st.binary(max_size=60)), draw(JSON)
    place, bit = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(0, 7))

    def damage(path: Path) -> None:
        before = path.read_bytes()
        at = int(place * len(before))
        path.unlink()
        if kind == "folder":
            path.mkdir()
            (path / "something").write_bytes(content)
        elif kind == "link":
            path.symlink_to(path.parent)
        elif kind != "gone":
            flipped = before[:at] + bytes([before[at] ^ 1 << bit]) + before[at + 1 :]
            written = {"bytes": content, "json": as_json(value), "cut": before[:at], "flip": flipped}
            path.write_bytes(written.get(kind) or _with_key(before, at, value))

    damage.__name__ = kind
    return damage


def _with_key(content: bytes, at: int, value: object) -> bytes:
    """One value of a JSON file replaced; other files get the value at the end."""
    try:
        parsed = json.loads(content)
    except ValueError:
        return content + as_json(value)
    return as_json(parsed | {list(parsed)[at % len(parsed)]: value})


@pytest.fixture
def finished(job_of: JobMaker) -> ScoringJob:
    job = job_of(ROWS, shard_seconds=1e-4)
    run_steps(job)
    return job


drawn = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.fault(7, 8)
@settings(drawn, max_examples=30)
@given(kept=st.sampled_from(sorted(KEPT)), which=st.integers(0, 99), damage=damages())
def test_any_content_is_told_and_mended(
    finished: ScoringJob, caplog: pytest.LogCaptureFixture, kept: str, which: int, damage: Damage
) -> None:
    root = finished.output_folder
    expected = _as_new(root) or table(finished)
    files = sorted(root.glob(KEPT[kept]))
    path = files[which % len(files)]
    before = path.read_bytes()
    damage(path)
    if path.is_file() and path.read_bytes() == before:
        return
    caplog.clear()
    _ask_a_damaged_folder(root, len(ROWS))
    run_steps(finished)
    assert table(finished) == expected
    with query(root, COUNT) as result:
        assert result.warning is None
    assert "set aside" in caplog.text or damage.__name__ == "gone"


def _as_new(root: Path) -> None:
    """The folder as its first run left it."""
    kept = root.with_name("kept")
    if kept.is_dir():
        shutil.rmtree(root)
        shutil.copytree(kept, root)
    else:
        shutil.copytree(root, kept)


def _ask_a_damaged_folder(root: Path, rows: int) -> None:
    """All rows, or fewer and a warning, or one line that says why there are none."""
    try:
        with query(root, COUNT) as result:
            answered = result.table()["n"][0].as_py()
            said = result.warning or ""
    except UserError as problem:
        answered, said = rows, str(problem)
    assert not said or "trunkline score JOB --output" in said
    assert answered == rows or f"{rows - answered} of {rows}" in said


@pytest.mark.fault(7, 8)
@settings(drawn, max_examples=10)
@given(kept=st.sampled_from(["plan.json", "rows", "requests", "nodes", "run record", "manifest"]), damage=damages())
def test_a_run_that_was_stopped_continues_over_damage(
    job_of: JobMaker, engine: FakeWorkers, kept: str, damage: Damage
) -> None:
    job = job_of(ROWS, shard_seconds=1e-4)
    shutil.rmtree(job.output_folder, ignore_errors=True)
    engine.works.clear()
    plan_alone(job, scored_shards=1)
    damage(sorted(job.output_folder.glob(KEPT[kept]))[0])
    _, published = run_steps(job)
    assert (published.results, published.missing) == (len(ROWS), 0)


def warning(job: ScoringJob) -> str:
    with query(job.output_folder, COUNT) as result:
        assert result.warning is not None
        return result.warning


@pytest.mark.fault(7)
def test_a_query_names_the_file_the_shard_and_the_cure(finished: ScoringJob) -> None:
    folder = OutputFolder(finished.output_folder)
    part = sorted(folder.parts.iterdir())[0]
    shard, _, _ = part.name.partition("-")
    content, lost = part.read_bytes(), pq.read_metadata(part).num_rows
    cure = f"mend it with the job 'test': trunkline score JOB --output {folder.root}"

    os.truncate(part, 10)
    cut = f"parts/{part.name} has 10 bytes of {len(content):,}"
    assert warning(finished) == f"{folder.root}: {lost} of 40 rows are missing: shard {shard}: {cut}; {cure}"

    part.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    assert f"shard {shard}: parts/{part.name} is damaged: its bytes are not" in warning(finished)

    part.unlink()
    assert f"shard {shard}: parts/{part.name} is gone" in warning(finished)
    next(folder.manifests.glob(f"*-{shard}.json")).unlink()
    assert f"{lost} of 40 rows are missing: shard {shard}: no manifest; {cure}" in warning(finished)


def test_the_manifest_of_an_older_plan_is_missed_as_well(job_of: JobMaker) -> None:
    """Its plan is gone, and no other file names it: the rows do."""
    for rows in (ROWS[:20], ROWS):
        job = job_of(rows, shard_seconds=1e-4)
        run_steps(job)
    oldest = sorted(OutputFolder(job.output_folder).manifests.glob("shard-*"))[0]
    lost = read_json(oldest)["rows"]
    oldest.unlink()
    assert f"{lost} of 40 rows are missing: the manifests of their shards are gone" in warning(job)


def test_a_lost_record_hides_no_result(finished: ScoringJob) -> None:
    [record] = finished.output_folder.glob("manifests/run-*.json")
    record.write_bytes(b"null")
    assert f"no row is missing, but: manifests/{record.name} is not as it was written" in warning(finished)


@pytest.mark.fault(8)
@pytest.mark.parametrize("content", [b"", b"null\n", b"[]\n", b'{"a": 1}\n', b"{}\n", b"[" * 100_000])
def test_json_of_others_is_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"a.json is not as it was written"):
        read_json(tmp_path / "a.json")


def test_json_comes_back_as_it_was_given(tmp_path: Path) -> None:
    given_ = {"text": "é\n", "number": 0.1, "none": None, "list": [1, {"a": True}]}
    assert read_json(stage_json(tmp_path / "a.json", given_)) == given_


def test_damage_is_in_the_log_of_the_run_that_mends_it(finished: ScoringJob, caplog: pytest.LogCaptureFixture) -> None:
    manifest = sorted(finished.output_folder.glob(KEPT["manifest"]))[0]
    manifest.write_text("null")
    with caplog.at_level(logging.WARNING):
        run_steps(finished)
    told = f"manifests/{manifest.name} is not as it was written: set aside as *.bad, its shard will be scored again"
    assert told in caplog.messages
    assert manifest.with_name(f"{manifest.name}.bad").read_text() == "null"
