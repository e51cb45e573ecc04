"""Ids that name no row, or more than one."""

import pyarrow as pa
import pytest

from engine.errors import UserError
from tasks.request.requests import RequestBuilder
from tasks.source.ids import FEW_ROWS
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import run_steps


@pytest.mark.fault(17)
@pytest.mark.parametrize("before", [0, FEW_ROWS], ids=["counted here", "grouped out of core"])
@pytest.mark.parametrize(
    ("ids", "line"),
    [
        (["a", "b", "c", "c", "b", "b"], "source.id: column 'id' is not unique: 3 rows have 'b'"),
        (["a", None, "b", "b"], "source.id: column 'id' is NULL in row {}"),
    ],
)
def test_bad_ids_end_the_run_before_any_row_is_encoded(
    job_of: JobMaker, ids: list[str], line: str, before: int, monkeypatch: pytest.MonkeyPatch, engine: FakeWorkers
) -> None:
    ids, line = [*map(str, range(before)), *ids], line.format(before + 1)
    job = job_of(pa.table({"id": ids, "text": ["a"] * len(ids)}), source={"id": "id"})
    monkeypatch.setattr(RequestBuilder, "build", lambda *_: pytest.fail("a row was encoded"))
    with pytest.raises(UserError, match=line):
        run_steps(job)
