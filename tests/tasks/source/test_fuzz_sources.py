"""Mutations of a CSV, a JSONL and a Parquet file: rows and error rows, or one line; no traceback."""

import io
import json
import random
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import UserError
from tasks.extract import extract_rows
from tasks.request.columns import find_columns
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import Run, make_run
from tests.mutations import mutated, seeds
from tests.tasks.conftest import JobMaker
from tests.tasks.steps import make_job

MUTATIONS = 200  # from each seed

TABLE: dict[str, list[Any]] = {
    "id": [f"r{i}" for i in range(6)],
    "text": ["plain", 'with "quotes", commas', "two\nlines", "é \N{PILE OF POO}", "", None],
    "number": [0, -1, 2**40, None, 7, 8],
    "score": [0.5, None, 1e300, -0.0, 3.25, 1.0],
    "labels": [["a", "b"], ["c"], None, [], ["d", None], ["e"]],
    "cell": [
        {"x": 1, "y": "z"},
        None,
        {"x": None, "y": ""},
        {"x": 3, "y": "w"},
        {"x": 4, "y": "v"},
        {"x": 5, "y": "u"},
    ],
}
TEMPLATE = "{{ text or '' }} {{ number }} {{ cell }}"


def csv_file() -> bytes:
    rows = [TABLE["id"], TABLE["text"], TABLE["number"], map(json.dumps, TABLE["cell"])]
    lines = [",".join(map(_quoted, row)) for row in zip(*rows, strict=True)]
    return "\n".join(["id,text,number,cell", *lines, ""]).encode()


def _quoted(value: object) -> str:
    return "" if value is None else '"' + str(value).replace('"', '""') + '"'


def jsonl_file() -> bytes:
    rows = [dict(zip(TABLE, row, strict=True)) for row in zip(*TABLE.values(), strict=True)]
    return "".join(f"{json.dumps(row, ensure_ascii=i % 2 == 0)}\n" for i, row in enumerate(rows)).encode()


def parquet_file() -> bytes:
    moments = pa.array(range(6), pa.timestamp("ns", "UTC"))
    prices = pa.array([Decimal(i) / 4 for i in range(6)], pa.decimal128(12, 2))
    names = pa.array(["a", "b", "a", None, "b", "a"]).dictionary_encode()
    table = pa.table(TABLE).append_column("when", moments).append_column("price", prices).append_column("name", names)
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=3, compression="zstd", write_page_index=True)
    return file.getvalue()


FILES: dict[str, tuple[Callable[[], bytes], list[str]]] = {
    "csv": (csv_file, ["text", "number", "cell"]),
    "jsonl": (jsonl_file, ["text", "score", "labels", "cell"]),
    "parquet": (parquet_file, ["text", "labels", "when", "price", "name", "cell"]),
}


def run_of(tmp_path: Path, content: dict[str, Any], scratch: str) -> Run:
    folder = OutputFolder(tmp_path / scratch)
    folder.create()
    return make_run(make_job(content), folder)


@pytest.mark.parametrize("seed", seeds(5))
@pytest.mark.parametrize("kind", FILES)
def test_no_mutation_ends_in_a_traceback(job_of: JobMaker, tmp_path: Path, kind: str, seed: int) -> None:
    write, kept = FILES[kind]
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(write())
    keep = {name: f"kept_{name}" for name in kept}
    changes = [
        {"prompt": {"template": TEMPLATE}, "task": {"type": "generate"}},
        {"prompt": {"column": "text"}, "source": {"id": "id"}},
        {"prompt": {"column": "text"}, "task": {"type": "generate"}},
    ]
    runs = []
    for change in changes:
        source = {kind: str(path), "keep": keep} | change.pop("source", {})
        job = job_of(source=source, **change)
        runs.append(run_of(tmp_path, job.model_dump(mode="json"), f"scratch-{len(runs)}"))
    for run in runs:
        assert extract_rows(run).rows == 6
    draw, ended = random.Random(seed), {"rows": 0, "refused": 0}
    for number in range(MUTATIONS):
        path.write_bytes(mutated(draw, write()))
        run = runs[min(number % 8, 2)]  # the first two take three times as long
        said = _refusal(run)
        assert said is None or 0 < len(said) < 1000, said
        ended["rows" if said is None else "refused"] += 1
    assert min(ended.values()) > 0, ended


def _refusal(run: Run) -> str | None:
    """The line that ends the run; None where every row came out, as a request or an error."""
    try:
        find_columns(run.job)
        extracted = extract_rows(run)
        rows = pq.read_table(extracted.folder / "rows.parquet")
    except UserError as said:
        return str(said).strip()
    finally:
        run.folder.sweep_staging()
    assert (rows.num_rows, len(rows["error_type"].drop_null())) == (extracted.rows, extracted.rejected)
    return None
