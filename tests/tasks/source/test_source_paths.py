"""Relative paths of a source start at the working directory, else at the job file's folder."""

from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from engine.errors import UserError
from tasks.job.job import ScoringJob
from tasks.job.job_file import load_job
from tasks.job.job_source import Source
from tasks.source.source_paths import find_database, find_files


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, beside a folder `jobs`."""
    for name in ("here", "jobs"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def job_of(here: Path, source: dict[str, Any]) -> ScoringJob:
    path = here.parent / "jobs" / "job.yaml"
    job = {"name": "a", "source": source, "prompt": {"column": "text"}, "task": {"type": "generate"}}
    path.write_text(yaml.safe_dump(job))
    return load_job(Path("..") / "jobs" / "job.yaml")


def test_the_job_files_folder_comes_second(here: Path) -> None:
    jobs = here.parent / "jobs"
    (jobs / "data").mkdir()
    for name in ("b.csv", "a.csv"):
        (jobs / "data" / name).write_text("text\n")
    source = job_of(here, {"csv": "data/*.csv"}).source
    assert find_files(source) == (jobs / "data" / "a.csv", jobs / "data" / "b.csv")
    (here / "data").mkdir()
    (here / "data" / "c.csv").write_text("text\n")
    assert find_files(source) == (Path("data/c.csv"),)


def test_the_error_names_both(here: Path) -> None:
    looked = f"looked from {here} and from {here.parent / 'jobs'}"
    with pytest.raises(UserError) as said:
        find_files(job_of(here, {"csv": "data/*.csv"}).source)
    assert str(said.value) == f"source.csv: no file matches data/*.csv ({looked})"
    with pytest.raises(UserError) as said:
        find_database(job_of(here, {"duckdb": {"database": "a.duckdb", "query": "select 1"}}).source)
    assert str(said.value) == f"source.duckdb.database: no file a.duckdb ({looked})"


def test_a_database_beside_the_job(here: Path) -> None:
    database = here.parent / "jobs" / "a.duckdb"
    duckdb.connect(str(database)).close()
    assert find_database(job_of(here, {"duckdb": {"database": "a.duckdb", "query": "select 1"}}).source) == database


def test_an_absolute_path_and_a_home_are_looked_for_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    for given, path in ((f"{here}/no.csv", f"{here}/no.csv"), ("~/no.csv", f"{here}/no.csv")):
        with pytest.raises(UserError) as said:
            find_files(job_of(here, {"csv": given}).source)
        assert str(said.value) == f"source.csv: no file matches {path} (looked from {here})"


def test_a_job_without_a_file_knows_the_working_directory_alone(here: Path) -> None:
    with pytest.raises(UserError, match=rf"\(looked from {here}\)"):
        find_files(Source(csv="no.csv"))


def test_a_folder_with_a_globs_letters(here: Path) -> None:
    jobs = here.parent / "jobs [1]"
    jobs.mkdir()
    (jobs / "a.csv").write_text("text\n")
    assert find_files(Source(csv="*.csv", folder=str(jobs))) == (jobs / "a.csv",)


def test_a_folder_and_an_address_are_told_with_what_to_write(here: Path) -> None:
    (here / "data").mkdir()
    with pytest.raises(UserError) as said:
        find_files(job_of(here, {"jsonl": "data"}).source)
    assert str(said.value) == "source.jsonl: data is a folder; write data/*.jsonl for the files in it"
    database = {"duckdb": {"database": "postgres://me:secret@host/db", "query": "select 1"}}
    for source, find in (({"parquet": "s3://secret/x"}, find_files), (database, find_database)):
        with pytest.raises(UserError, match=r"://\.\.\.\) is no file on this machine; copy it to Parquet") as said:
            find(job_of(here, source).source)
        assert "secret" not in str(said.value)
