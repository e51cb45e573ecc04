"""Times planning from token ids to a stored plan, and how much memory it takes; neither rendering nor encoding.

`python -m tests.tasks.plan_at_scale --rows 10000000` prints a table. Rows of 100 tokens are as `tasks.extract` leaves
them, shuffled; 16 share 80 of them, and each generates 8. The model is the embedded one, and is not loaded.
"""

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pytest
import typer

from tasks.deduplicate import deduplicate_requests
from tasks.extract import NEW_REQUESTS, Extracted
from tasks.job.sampling import Sampling
from tasks.job.task import Task
from tasks.plan import make_run_plan
from tasks.request.ask import Ask
from tasks.storage.parquet_sink import parquet_sink
from tasks.storage.run import open_run
from tasks.storage.stored_plan import ROWS
from tasks.storage.token_arrays import TOKEN_LIST, TOKEN_LISTS
from tests.tasks.fakes import FakeWorkers, job_content
from tests.tasks.million_rows import MIB, peak_memory
from tests.tasks.steps import make_job, use_fakes

BATCH, DEGREE, PREFIX, OWN = 32_768, 16, 80, 20
ASK = Ask(Task(type="generate"), Sampling(max_tokens=8)).text


def main(rows: Annotated[int, typer.Option(min=1)] = 1_000_000) -> None:
    sys.stdout.write("| stage | seconds | microseconds a row | MiB at most |\n|---|---|---|---|\n")
    with tempfile.TemporaryDirectory(prefix="trunkline-plan-") as name:
        folder = Path(name)
        os.environ |= {"TRUNKLINE_CACHE": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state")}
        workers = FakeWorkers()
        use_fakes(pytest.MonkeyPatch(), workers)
        (folder / "rows.jsonl").write_text("{}")
        task = {"task": {"type": "generate"}, "model": {"path": "embedded"}}
        with open_run(make_job(job_content(folder, {"jsonl": str(folder / "rows.jsonl")}) | task)) as run:
            staged = run.folder.staged("extract")
            staged.mkdir()
            _write(staged, rows)
            with _stage("deduplicate", rows):
                found = deduplicate_requests(run, Extracted(rows, 0, staged, "none"))
            with _stage("plan", rows):
                planned = make_run_plan(run, found, workers)
        assert planned.pending == planned.summary.requests == rows
        sys.stdout.write(f"{planned.text}\n")


@contextmanager
def _stage(name: str, rows: int) -> Iterator[None]:
    with peak_memory() as peak:
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
    sys.stdout.write(f"| {name} | {seconds:.1f} | {seconds / rows * 1e6:.1f} | {peak[0] // MIB:,} |\n")
    sys.stdout.flush()


def _write(folder: Path, rows: int) -> None:
    schemas = _batch(np.arange(1), 1)
    draw = np.random.default_rng(0)
    with (
        parquet_sink(folder / ROWS, schemas[0].schema) as kept,
        parquet_sink(folder / NEW_REQUESTS, schemas[1].schema) as requests,
    ):
        for first in range(0, rows, BATCH):
            for sink, batch in zip(
                (kept, requests), _batch(np.arange(first, min(first + BATCH, rows)), rows, draw), strict=True
            ):
                sink.write(batch)


def _batch(
    row: "np.ndarray[tuple[int], np.dtype[np.int64]]", rows: int, draw: np.random.Generator | None = None
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """What `tasks.extract` writes of these of so many rows, whose groups lie all over the table."""
    draw = draw or np.random.default_rng(0)
    group = row * 7_919 % -(rows // -DEGREE)
    prefix = (group[:, None] * 104_729 + np.arange(PREFIX) * 1_299_709) % 39_989
    tokens = np.concatenate([prefix, draw.integers(0, 40_000, (len(row), OWN))], axis=1).astype(np.int32)
    names = pa.array([hashlib.blake2b(b"%d" % one, digest_size=16).hexdigest() for one in row.tolist()])
    count = len(row)
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * (PREFIX + OWN))
    kept = {
        "row_index": pa.array(row),
        "prompt_tokens": pa.array(np.full(count, PREFIX + OWN, np.int32)),
        "custom_id": pa.array(list(map(str, row.tolist()))),
        "request_hash": names,
        "error_type": pa.nulls(count, pa.string()),
        "error_message": pa.nulls(count, pa.string()),
    }
    requests = {
        "row_index": pa.array(row),
        "request_hash": names,
        "prompt_token_ids": pa.ListArray.from_arrays(offsets, pa.array(tokens.reshape(-1))),
        "labels": pa.array([[]] * count, TOKEN_LISTS),
        "label_texts": pa.array([[]] * count, pa.list_(pa.string())),
        "max_tokens": pa.array(np.full(count, 8, np.int32)),
        "ask": pa.array([ASK] * count),
        "adapter": pa.nulls(count, pa.string()),
    }
    assert requests["prompt_token_ids"].type == TOKEN_LIST
    return pa.record_batch(kept), pa.record_batch(requests)


if __name__ == "__main__":
    typer.run(main)
