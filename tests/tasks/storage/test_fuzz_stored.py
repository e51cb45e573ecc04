"""Mutations of what a run keeps: a query answers, with a warning or one line; the store of rows is never wrong."""

import random
import shutil
from pathlib import Path

import pytest

from engine.errors import UserError
from tasks.query import query
from tasks.report.published import open_published
from tasks.storage.output_folder import OutputFolder
from tests.mutations import mutated, seeds
from tests.tasks.conftest import JobMaker
from tests.tasks.steps import run_steps

MUTATIONS = 80  # from each seed
KEPT = ("manifests/shard-*.json", "manifests/run-*.json", "parts/*.parquet", "plan/plan-*/*")
COUNT = "select (select count(*) from results) as n, (select count(*) from runs), (select count(*) from shards)"
ROWS = 12


@pytest.mark.fault(7)
@pytest.mark.fault(8)
@pytest.mark.parametrize("seed", seeds(5))
def test_no_mutation_ends_in_a_traceback(job_of: JobMaker, tmp_path: Path, seed: int) -> None:
    job = job_of([{"text": f"document {number}"} for number in range(ROWS)], shard_seconds=1e-4)
    run_steps(job)
    sound, root = tmp_path / "sound", job.output_folder
    shutil.copytree(root, sound)
    files = sorted(path.relative_to(sound) for pattern in KEPT for path in sound.glob(pattern))
    draw, ended = random.Random(seed), {"answers": 0, "refused": 0}
    for number in range(MUTATIONS):
        name = draw.choice(files)
        before = (sound / name).read_bytes()
        after = mutated(draw, before)
        (root / name).write_bytes(after)
        reasons = _found(root)
        assert reasons or after == before or name.suffix == ".parquet", name
        assert all(0 < len(reason) < 1500 and "\n" not in reason for reason in reasons), reasons
        if number % 16 == 0:
            rows, told = _asked(root)
            assert rows == ROWS or told, name
            assert told is None or "\n" not in told, told
            ended["refused" if rows is None else "answers"] += 1
        (root / name).write_bytes(before)
    assert sum(ended.values()) == MUTATIONS // 16


def _found(root: Path) -> tuple[str, ...]:
    """What is wrong with the folder, a line each."""
    try:
        return open_published(OutputFolder(root)).reasons
    except UserError as said:
        return (str(said),)


def _asked(root: Path) -> tuple[int | None, str | None]:
    """The results that a query counts, with its warning; None and the line that refuses it."""
    try:
        with query(root, COUNT) as result:
            [row] = result.table().to_pylist()
            return row["n"], result.warning
    except UserError as said:
        return None, str(said)
