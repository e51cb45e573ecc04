"""What Prefect keeps of a run that fails, below its own folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from engine.errors import UserError
from flows.score import score
from tasks.job.job_file import parse_job


def test_an_exception_is_stored_as_json(prefect_server: None, small_job: dict[str, Any], tmp_path: Path) -> None:
    job = parse_job(small_job | {"source": {"parquet": str(tmp_path / "no.parquet")}}, "test")
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "storage"}):
        with pytest.raises(UserError) as raised:
            score(job)
        [stored] = (tmp_path / "storage").iterdir()
    said = {"__exc_type__": "engine.errors.UserError", "message": str(raised.value)}
    assert json.loads(stored.read_text()) == said
