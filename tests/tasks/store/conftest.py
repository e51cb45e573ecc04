from pathlib import Path
from typing import Any

import pytest

from tasks.job.job import ScoringJob
from tests.tasks.conftest import JobMaker


@pytest.fixture
def stored(job_of: JobMaker, tmp_path: Path) -> Any:
    """Makes jobs on one store, each with an output folder of its own."""

    def make(name: str, rows: list[dict[str, Any]], **changes: Any) -> ScoringJob:
        given = {"output": str(tmp_path / name), "store": str(tmp_path / "store"), "source": {"id": "id"}}
        return job_of(rows, **(given | changes))

    return make
