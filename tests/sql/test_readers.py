"""Other programs read the folder as docs/queries.md says."""

import re
import subprocess
import venv
from pathlib import Path

import duckdb
import pytest

from tests.sql.tickets import write_tickets
from tests.tasks.conftest import JobMaker

PAGE = (Path(__file__).parents[2] / "docs" / "queries.md").read_text()
LABELS = {"billing": 2, "delivery": 2, "other": 4}
DBT = ("dbt-core==1.9.11", "dbt-duckdb==1.9.6")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, job_of: JobMaker) -> str:
    """The page, about the tickets' folder."""
    return PAGE.replace("runs/package-topics", str(write_tickets(monkeypatch, job_of).output_folder))


def test_pandas_and_polars(said: str) -> None:
    import pandas as pd
    import polars as pl

    [program] = re.findall(r"```python\n(.*?)```", said, re.DOTALL)
    made: dict[str, object] = {}
    exec(program, made)
    by_pandas, by_polars = made["by_pandas"], made["by_polars"]
    assert isinstance(by_pandas, pd.DataFrame)
    assert isinstance(by_polars, pl.DataFrame)
    assert by_pandas["label"].value_counts().to_dict() == LABELS
    assert dict(by_polars["label"].value_counts().iter_rows()) == LABELS
    assert len(by_pandas.columns) == len(by_polars.columns)


@pytest.mark.nightly
def test_dbt(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an environment of its own: dbt has pins for much that Trunkline has too."""
    [profile] = re.findall(r"```yaml\n(reading:.*?)```", said, re.DOTALL)
    project = tmp_path / "project"
    (project / "models").mkdir(parents=True)
    (project / "profiles.yml").write_text(profile)
    (project / "dbt_project.yml").write_text('name: reading\nversion: "1.0.0"\nprofile: reading\n')
    model = (
        "{{ config(materialized='table') }} select label, count(*) as num_rows from trunkline.results group by label"
    )
    (project / "models" / "labels.sql").write_text(model)
    venv.create(tmp_path / "dbt", with_pip=True)
    programs = tmp_path / "dbt" / "bin"
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    engine = f"duckdb=={duckdb.__version__}"
    subprocess.run([programs / "pip", "install", "--quiet", *DBT, engine], check=True)
    done = subprocess.run(
        [programs / "dbt", "run", "--profiles-dir", "."], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with duckdb.connect(str(project / "warehouse.duckdb"), read_only=True) as warehouse:
        assert dict(warehouse.sql("from labels").fetchall()) == LABELS
