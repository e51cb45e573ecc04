"""In which format a query's rows are written: as asked, else as the file's name ends."""

from pathlib import Path

import pytest

from flows.sql_format import Format, choose_format
from tests.flows.test_cli import run


@pytest.mark.parametrize(
    ("asked", "to", "chosen"),
    [
        (None, None, Format.TABLE),
        (None, Path("a.csv"), Format.CSV),
        (None, Path("a.txt"), Format.TABLE),
        (None, Path("a.CSV"), Format.CSV),
        (None, Path("a.json"), Format.JSON),
        (Format.JSON, Path("a.csv"), Format.JSON),
        (Format.CSV, Path("a"), Format.CSV),
        (None, Path("a.parquet"), Format.PARQUET),
        (None, Path("a.xlsx"), Format.XLSX),
        (None, Path("a.duckdb"), Format.DUCKDB),
    ],
)
def test_the_files_name_tells_the_format(asked: Format | None, to: Path | None, chosen: Format) -> None:
    assert choose_format(asked, to) is chosen


@pytest.mark.parametrize(
    ("name", "said"), [("a.xls", ".xls is not written"), ("a.csv.gz", ".gz is not written"), ("a", "has no ending")]
)
def test_an_ending_that_is_not_written_is_refused_before_the_query(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, said: str
) -> None:
    to = tmp_path / name
    assert run(monkeypatch, "sql", "select 1", "--output", str(tmp_path / "nowhere"), "--to", str(to)) == 2
    cure = "end it in .csv, .json, .parquet, .xlsx, .duckdb, .txt, or say --format"
    assert capsys.readouterr().err == f"trunkline: --to {to}: {said}; {cure}\n"
    assert not to.exists()
