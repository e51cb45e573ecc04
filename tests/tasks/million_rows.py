"""Times a table through all stages with a model that takes no time, and how much memory each stage takes.

`python -m tests.tasks.million_rows --rows 1000000` prints a table. Each size runs in a process of its own, a thousand
rows first, so that what a stage takes with many rows is told from what its libraries take anyway.
"""

import gc
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from engine.plan import ShardWork
from engine.request import RequestOutput
from tasks.deduplicate import deduplicate_requests
from tasks.extract import extract_rows
from tasks.infer import infer_shard
from tasks.plan import make_run_plan
from tasks.publish import publish_results
from tasks.storage.run import open_run
from tests.tasks.fakes import FakeWorkers, job_content, write_model
from tests.tasks.steps import make_job, use_fakes

FEW = 1000
BATCH = 10_000
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Stage:
    """`peak` bytes of memory were the most that the process had while it ran."""

    name: str
    seconds: float
    peak: int


class ForgetfulWorkers(FakeWorkers):
    """Keeps no shard that it answered."""

    def submit(self, work: ShardWork, on_output: Callable[[RequestOutput], None] | None = None):  # type: ignore[no-untyped-def]
        future = super().submit(work, on_output)
        self.works.clear()
        return future


def main(
    rows: Annotated[int, typer.Option(help="Of the larger table.")] = 1_000_000,
    only: Annotated[bool, typer.Option("--only", hidden=True)] = False,
) -> None:
    if only:
        sys.stdout.write(msgspec.json.encode([asdict(stage) for stage in _stages(rows)]).decode())
        return
    few, many = _measured(FEW), _measured(rows)
    lines = [f"| stage | microseconds a row | MiB, {FEW:,} rows | MiB, {rows:,} rows |", "|---|---|---|---|"]
    for less, more in zip(few, many, strict=True):
        lines.append(f"| {more.name} | {more.seconds / rows * 1e6:.1f} | {less.peak // MIB:,} | {more.peak // MIB:,} |")
    total = sum(stage.seconds for stage in many)
    lines.append(f"| all | {total / rows * 1e6:.1f} | {max(s.peak for s in few) // MIB:,} "
                 f"| {max(s.peak for s in many) // MIB:,} |")  # fmt: skip
    sys.stdout.write("\n".join(lines) + "\n")


def _measured(rows: int) -> list[Stage]:
    command = [sys.executable, "-m", "tests.tasks.million_rows", "--rows", str(rows), "--only"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(done.stdout, type=list[Stage])


def _stages(rows: int) -> list[Stage]:
    stages: list[Stage] = []

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        with peak_memory() as peak:
            started = time.perf_counter()
            yield
            stages.append(Stage(name, time.perf_counter() - started, 0))
        stages[-1] = Stage(name, stages[-1].seconds, peak[0])

    with tempfile.TemporaryDirectory(prefix="trunkline-rows-") as name:
        folder = Path(name)
        os.environ |= {"TRUNKLINE_CACHE": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state")}
        write_model(folder / "model")
        use_fakes(pytest.MonkeyPatch(), ForgetfulWorkers())
        _write_source(folder / "rows.parquet", rows)
        source = {"parquet": str(folder / "rows.parquet"), "id": "id"}
        workers = ForgetfulWorkers()
        with open_run(make_job(job_content(folder, source))) as run:
            with stage("extract"):
                extracted = extract_rows(run)
            with stage("deduplicate"):
                deduplicated = deduplicate_requests(run, extracted)
            with stage("plan"):
                planned = make_run_plan(run, deduplicated, workers)
            with stage("infer"):
                for shard in planned.shards:
                    infer_shard(run, planned.plan_id, shard, workers)
            with stage("publish"):
                published = publish_results(run, planned.plan_id)
        assert (published.rows, published.results, published.missing) == (rows, rows, 0)
        assert run.folder.root.joinpath("report.html").is_file()
    return stages


def _write_source(path: Path, rows: int) -> None:
    """Questions about documents, four to each; all differ."""
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, rows, BATCH):
            numbers = range(first, min(first + BATCH, rows))
            texts = [f"Answer from the document. Document {i // 4}. Question {i}?" for i in numbers]
            writer.write_table(pa.table({"id": [f"r{i}" for i in numbers], "text": texts}, schema))


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The most resident bytes while the context is open, looked at every 5 ms."""
    gc.collect()
    process, done = psutil.Process(), threading.Event()
    peak = [process.memory_info().rss]

    def look() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield peak
    finally:
        done.set()
        looking.join()


if __name__ == "__main__":
    typer.run(main)
