"""Each query of docs/queries.md prints what the page says, over the tickets of `tests.sql.tickets`."""

import io
import re
from pathlib import Path

import pytest

from flows.text_table import write_table
from tasks.query import query
from tests.sql.tickets import write_tickets
from tests.tasks.conftest import JobMaker

PAGE = Path(__file__).parents[2] / "docs" / "queries.md"
WORKED = re.findall(r"```sql\n(.*?)```\n\n```text\n(.*?)```", PAGE.read_text(), re.DOTALL)


def shown(folder: Path, sql: str) -> str:
    out = io.BytesIO()
    with query(folder, sql) as result:
        write_table(result, out, terminal=False)
    lines = [line.rstrip() for line in out.getvalue().decode().splitlines()]
    return "\n".join(line for line in lines if line) + "\n"


def test_each_query_prints_what_the_page_says(monkeypatch: pytest.MonkeyPatch, job_of: JobMaker) -> None:
    assert len(WORKED) == 10
    job = write_tickets(monkeypatch, job_of)
    for sql, said in WORKED:
        assert shown(job.output_folder, sql) == said, sql
