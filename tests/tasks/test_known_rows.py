"""A row that did not change is neither rendered nor encoded again, and no row gets another's request."""

import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.job.job import ScoringJob
from tasks.request.requests import NewRequest, RequestBuilder
from tasks.source.row_error import RowError
from tasks.source.source_rows import SourceBatch
from tasks.storage.manifests import read_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.stored_plan import DIGESTS, plan_folder, plan_ids
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import ByteTokenizer, FakeWorkers
from tests.tasks.steps import outcomes, run_steps, table, use_fakes

ROWS = [{"id": f"r{i}", "text": f"document {i}", "topic": i} for i in range(8)]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the rows of which requests are built."""
    ids: list[str] = []
    build = RequestBuilder.build

    def counted(self: RequestBuilder, batch: SourceBatch, custom_ids: Sequence[str]) -> list[NewRequest | RowError]:
        ids.extend(custom_ids)
        return build(self, batch, custom_ids)

    monkeypatch.setattr(RequestBuilder, "build", counted)
    return ids


@pytest.fixture
def rerun(job_of: JobMaker, built: list[str], tmp_path: Path) -> Any:
    """Runs a table, then another on the same folder. Returns the ids of the second that were built, and its job."""

    def run(before: list[dict[str, Any]], after: list[dict[str, Any]], **changes: Any) -> tuple[list[str], ScoringJob]:
        given = {"source": {"id": "id", "keep": ["topic"]}} | changes
        run_steps(job_of(before, **given))
        built.clear()
        job = job_of(after, **given)
        run_steps(job)
        expected = job_of(after, **(given | {"output": str(tmp_path / "plain")}))
        seen = list(built)
        run_steps(expected)
        assert table(job) == table(expected)
        return seen, job

    return run


def test_what_changed_is_built(rerun: Any) -> None:
    changed = [*ROWS[3:], {"id": "new", "text": "new", "topic": 9}, ROWS[0] | {"text": "changed"}, *ROWS[1:3]]
    assert rerun(ROWS, changed)[0] == ["new", "r0"]


def test_nothing_that_is_only_kept_is_an_old_rows(rerun: Any) -> None:
    """Ids and kept columns come from the table as it is now."""
    renamed = [row | {"id": f"now-{row['id']}", "topic": 100} for row in ROWS]
    seen, job = rerun(ROWS, renamed)
    assert seen == []
    assert {row["topic"] for row in table(job)} == {100}


@pytest.mark.parametrize("value", [None, "", "nul\x00", "x" * 300])
def test_a_row_that_cannot_be_scored_is_known_too(rerun: Any, value: str | None) -> None:
    rows = [*ROWS[:2], {"id": "bad", "text": value, "topic": 0}]
    assert rerun(rows, rows)[0] == []


def test_rows_without_an_answer_are_built(job_of: JobMaker, engine: FakeWorkers, built: list[str]) -> None:
    """Errors are answers, but for a retry; a part that is damaged has none."""
    rows = [*ROWS[:2], {"id": "bad", "text": "an unlucky row", "topic": 0}]
    job = job_of(rows, source={"id": "id"})
    run_steps(job)
    built.clear()
    run_steps(job)
    assert built == []
    engine.heals = True
    run_steps(job, retry_failed=True)
    assert built == ["bad"]
    assert set(outcomes(job).values()) == {"ok"}
    built.clear()
    folder = OutputFolder(job.output_folder)
    for manifest in read_manifests(folder):
        (folder.parts / manifest.files[0].name).write_bytes(b"damaged")
    run_steps(job)
    assert built == ["r0", "r1", "bad"]
    assert set(outcomes(job).values()) == {"ok"}


def test_full_builds_all(job_of: JobMaker, built: list[str]) -> None:
    job = job_of(ROWS, source={"id": "id"})
    run_steps(job)
    built.clear()
    run_steps(job, full=True)
    assert len(built) == len(ROWS)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": {"template": "{{ text }}."}},
        {"prompt": {"column": "text", "truncate_prompt_tokens": 3}},
        {"task": {"type": "choice", "labels": [" a", " b"]}},
        {"engine": {"device": "cpu", "kv_cache_memory": "16MiB", "max_model_len": 64}},
    ],
    ids=["template", "truncation", "labels", "context"],
)
def test_rows_are_not_known_to_a_job_that_makes_others_of_them(
    job_of: JobMaker, built: list[str], changes: dict[str, Any]
) -> None:
    run_steps(job_of(ROWS, source={"id": "id"}))
    built.clear()
    run_steps(job_of(ROWS, source={"id": "id"}, **changes))
    assert len(built) == len(ROWS)


def test_a_column_of_another_type_is_read_again(job_of: JobMaker, built: list[str]) -> None:
    """The text of a number may be another than that of the text which looks like it."""
    for kind in (pa.string(), pa.int64()):
        built.clear()
        run_steps(job_of(pa.table({"text": pa.array([1, 2], pa.int64()).cast(kind)})))
        assert built == ["0", "1"]


def test_cells_do_not_melt_into_each_other(rerun: Any) -> None:
    """Two columns that give the same bytes one after the other are other rows."""
    rows = [{"id": "r", "text": text, "more": more, "topic": 0} for text, more in (("ab", "c"),)]
    other = [{"id": "r", "text": text, "more": more, "topic": 0} for text, more in (("a", "bc"),)]
    assert rerun(rows, other, prompt={"template": "{{ text }}|{{ more }}"})[0] == ["r"]


@pytest.mark.parametrize("sampling", [{"temperature": 1.0}, {"temperature": 1.0, "column": "how"}])
def test_a_row_that_is_drawn_afresh_is_known_by_its_id(rerun: Any, sampling: dict[str, Any]) -> None:
    rows = [row | {"how": None} for row in ROWS]
    renamed = [rows[0] | {"id": "other"}, *rows[1:]]
    assert rerun(rows, renamed, task={"type": "generate"}, sampling=sampling)[0] == ["other"]


def test_a_template_that_tells_the_day_is_rendered_each_day(
    job_of: JobMaker, engine: FakeWorkers, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dated(ByteTokenizer):
        chat_template = "{{ strftime_now('%d %b %Y') }}"

    class Tomorrow(date):
        @classmethod
        def today(cls) -> date:
            return date(2999, 1, 1)

    use_fakes(monkeypatch, engine, Dated())
    job = job_of(ROWS, prompt={"column": "text", "chat": True})
    run_steps(job)
    built.clear()
    run_steps(job)
    assert built == []
    monkeypatch.setattr("tasks.request.row_digests.date", Tomorrow)
    run_steps(job)
    assert len(built) == len(ROWS)


def test_a_plan_of_a_version_without_digests_is_read_whole(job_of: JobMaker, built: list[str]) -> None:
    job = job_of(ROWS, source={"id": "id"})
    run_steps(job)
    folder = OutputFolder(job.output_folder)
    shutil.rmtree(plan_folder(folder, plan_ids(folder)[-1]))
    built.clear()
    planned, _ = run_steps(job)
    assert (len(built), planned.committed) == (len(ROWS), len(ROWS))


def test_damaged_digests_are_not_believed(job_of: JobMaker, built: list[str]) -> None:
    job = job_of(ROWS, source={"id": "id"})
    run_steps(job)
    folder = OutputFolder(job.output_folder)
    path = plan_folder(folder, plan_ids(folder)[-1]) / DIGESTS
    table_before = pq.read_table(path)
    pq.write_table(table_before.take(list(reversed(range(len(ROWS))))), path)
    before = table(job)
    built.clear()
    run_steps(job)
    assert len(built) == len(ROWS)
    assert table(job) == before
