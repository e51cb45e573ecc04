"""What a row says is in the output folder and nowhere else: its word is looked for wherever a run writes."""

import json
import logging
import sqlite3
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_LOCAL_STORAGE_PATH

from engine.errors import UserError
from flows.score import score
from flows.workers import workers_from
from tasks.job.job_file import parse_job
from tasks.query import query
from tests.tasks.fakes import FakeWorkers

WORD = "xyzzymarkedword"
pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.fault(25)]

# Prompts that fail in each way that a cell can, and one that does not.
ROWS: list[dict[str, Any]] = [
    {"text": f"{WORD} fine"},
    {"text": f"{WORD} \x00"},
    {"text": f"{WORD} \ufdd0" + " long" * 3000},
    {"text": f"{WORD} fails", "fails": True},
    {"text": f"{WORD} loops", "loops": 99_999},
    {"text": f"{WORD} labels", "labels": f'["{WORD}'},
    {"text": f"{WORD} one", "labels": f'["{WORD}"]'},
    {"text": f"{WORD} sampling", "sampling": f'{{"{WORD}": 1}}'},
    {"text": f"{WORD} grammar", "sampling": f'{{"structured_outputs": {{"regex": "({WORD}"}}}}'},
    {"text": f"{WORD} task", "task": f'{{"type": "{WORD}"}}'},
    {"text": f"{WORD} adapter", "adapter": f"/{WORD}"},
]
TEMPLATE = (
    "{{ text }}{% if fails %}{{ text | strftime('%d') }}{% endif %}"
    "{% for i in range(loops or 0) %}{% for j in range(loops) %}{% endfor %}{% endfor %}"
)


def job_of(folder: Path, model: Path, **changes: Any) -> Any:
    names = ("text", "fails", "loops", "labels", "sampling", "task", "adapter")
    rows = [{name: row.get(name) for name in names} | {"labels": row.get("labels", '["a", "b"]')} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    content = {
        "name": "marked",
        "source": {"parquet": str(folder / "rows.parquet")},
        "prompt": {"template": TEMPLATE},
        "task": {"type": "choice", "labels_column": "labels", "column": "task"},
        "sampling": {"column": "sampling"},
        "model": {"path": str(model), "adapter_column": "adapter"},
        "engine": {"kv_cache_memory": "64MiB", "device": "cpu"},
        "output": str(folder / "out"),
    }
    return parse_job(content | changes, "marked.yaml")


def places(folder: Path) -> dict[str, bytes]:
    """All that a run writes beside its data: Prefect's database and results, run records, manifests, plans."""
    APILogHandler().flush()
    database = Path(str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition(":///")[2])
    with sqlite3.connect(database) as connection:
        found = {"prefect": "\n".join(connection.iterdump()).encode()}
    records = [*folder.rglob("*.json"), *folder.rglob("results.duckdb"), *folder.rglob(".lock")]
    return found | {str(path): path.read_bytes() for path in records}


def stored_by_prefect() -> set[Path]:
    """The results that flows of this process have left below Prefect's home."""
    return {path for path in Path(str(PREFECT_LOCAL_STORAGE_PATH.value())).rglob("*") if path.is_file()}


def hold_nothing(folder: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    found = places(folder)
    assert b"marked" in found["prefect"]
    assert [name for name, content in found.items() if WORD.encode() in content] == []
    assert WORD not in caplog.text
    out, err = capfd.readouterr()
    assert WORD not in out + err


@pytest.mark.parametrize("deaths", [0, 2])
def test_rows_that_fail_in_every_way(
    tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], deaths: int
) -> None:
    caplog.set_level(logging.DEBUG)
    job, before = job_of(tmp_path, tiny_model), stored_by_prefect()
    with workers_from(lambda _: nullcontext(FakeWorkers(deaths=deaths))):
        score(job)
    with query(job.output_folder, "select error_type from errors") as result:
        kinds = [row["error_type"] for row in result.table().to_pylist()]
    assert len(set(kinds)) >= 7, kinds
    hold_nothing(job.output_folder, caplog, capfd)
    assert stored_by_prefect() == before


def test_what_prefect_keeps_of_a_failed_run_is_plain_text(tmp_path: Path) -> None:
    before = stored_by_prefect()
    with pytest.raises(UserError):
        score(str(tmp_path / "none.yaml"))
    [stored] = stored_by_prefect() - before
    assert json.loads(stored.read_bytes())["__exc_type__"] == "engine.errors.UserError"
