"""One answer in six forms."""

import csv
import io
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len

from engine.errors import UserError
from flows.result_writer import write_result
from flows.sql_format import Format
from flows.text_table import CELL_LINES, TABLE_ROWS
from flows.workbook import LONGEST_TEXT
from tasks.report.table_file import HandedBatches, check_table_file, write_table_file


class Answer:
    """What `tasks.query` gives, over a table in memory."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.schema = table.schema
        self.columns = tuple(table.schema.names)

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield from self._table.to_batches(max_chunksize=2)


def written(table: pa.Table, form: Format, *, terminal: bool = False) -> bytes:
    out = io.BytesIO()
    write_result(Answer(table), form, out, terminal=terminal)  # type: ignore[arg-type]
    return out.getvalue()


@pytest.fixture
def table() -> pa.Table:
    return pa.table(
        {
            "custom_id": ["a", "b\nc", 'd "e", f'],
            "probs": pa.array([[("yes", 0.25)], None, []], pa.map_(pa.string(), pa.float64())),
            "logprob": [-1.5, float("nan"), None],
            "day": [date(2026, 11, 22), None, None],
            "labels": [["x", "ü"], [], None],
        }
    )


def test_json_is_one_array_of_objects(table: pa.Table) -> None:
    records: list[Any] = json.loads(written(table, Format.JSON))
    assert records[0] == {
        "custom_id": "a",
        "probs": {"yes": 0.25},
        "logprob": -1.5,
        "day": "2026-11-22",
        "labels": ["x", "ü"],
    }
    assert records[1]["logprob"] is None
    assert len(records) == 3


def test_numbers_of_any_length_are_numbers_in_json() -> None:
    """A sum is 38 digits wide, and so is what it is beside in a list or a struct."""
    most = Decimal(10**38 - 1)
    nested = pa.list_(pa.struct([("share", pa.decimal128(9, 2))]))
    table = pa.table(
        {
            "sum": pa.array([Decimal(219), most], pa.decimal128(38, 0)),
            "of": pa.array([[{"share": Decimal("1.50")}], None], nested),
            "mean": [float("nan"), -float("inf")],
        }
    )
    text = written(table, Format.JSON).decode()
    assert (
        text
        == f'[{{"sum": 219, "of": [{{"share": 1.50}}], "mean": null}},\n {{"sum": {most}, "of": null, "mean": null}}]\n'
    )
    assert json.loads(text)[1]["sum"] == most


def test_json_of_no_rows_is_an_empty_array(table: pa.Table) -> None:
    assert json.loads(written(table.slice(0, 0), Format.JSON)) == []


def test_csv_keeps_line_ends_and_quotes(table: pa.Table) -> None:
    rows = list(csv.reader(io.StringIO(written(table, Format.CSV).decode(), newline="")))
    assert rows[0] == ["custom_id", "probs", "logprob", "day", "labels"]
    assert [row[0] for row in rows[1:]] == ["a", "b\nc", 'd "e", f']
    assert json.loads(rows[1][1]) == {"yes": 0.25}


def test_parquet_is_the_same_table(table: pa.Table) -> None:
    assert pq.read_table(io.BytesIO(written(table, Format.PARQUET))).schema == table.schema


def test_parquet_is_not_for_a_terminal(table: pa.Table) -> None:
    with pytest.raises(UserError, match="--to FILE"):
        written(table, Format.PARQUET, terminal=True)


def test_a_table_shows_every_cell_without_colours(table: pa.Table) -> None:
    text = written(table, Format.TABLE).decode()
    assert "yes: 0.25" in text
    assert "2026-11-22" in text
    assert "\x1b" not in text


def test_markup_in_the_data_is_not_obeyed() -> None:
    assert "[red]x[/red]" in written(pa.table({"a": ["[red]x[/red]"]}), Format.TABLE).decode()


def test_a_long_table_says_that_there_is_more() -> None:
    text = written(pa.table({"n": list(range(TABLE_ROWS + 5))}), Format.TABLE).decode()
    assert f"the first {TABLE_ROWS:,} of {TABLE_ROWS + 5:,} rows" in text


def test_two_columns_of_one_name_are_both_written() -> None:
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["n", "n"])
    assert written(twice, Format.CSV) == b"n,n\n1,2\n"


def test_escape_sequences_in_the_data_do_not_reach_the_terminal() -> None:
    assert b"\x1b" not in written(pa.table({"a": ["\x1b[2J\x07x"]}), Format.TABLE)


def test_many_columns_on_a_narrow_terminal_become_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    wide = pa.table({f"column_{i}": [f"value {i}"] for i in range(20)})
    lines = written(wide, Format.TABLE, terminal=True).decode().splitlines()
    assert any("column_19" in line and "value 19" in line for line in lines)
    assert max(map(len, lines)) <= 60


def test_without_a_terminal_nothing_is_folded() -> None:
    long = "x" * 500
    assert long in written(pa.table({"a": [long]}), Format.TABLE).decode()


TEXTS = "Ein längerer Text mit vielen Worten. " * 40


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, table: pa.Table, width: int = 80) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    text = written(table, Format.TABLE, terminal=True).decode()
    return re.sub(r"\x1b\[\d+m", "", text).splitlines()


def test_a_terminal_is_filled_and_never_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short columns have what they need, long ones share the rest; where a cell is cut, that is said."""
    lines = on_a_terminal(monkeypatch, pa.table({"id": ["row-1"], "label": ["yes"], "text": [TEXTS]}))
    assert 70 <= max(map(len, lines)) <= 80
    [first] = [line for line in lines if "row-1" in line]
    assert "yes" in first
    assert len([line for line in lines if "Text" in line or "Worten" in line]) <= CELL_LINES + 2
    assert any(line.rstrip().endswith("…") for line in lines)
    assert any("longer" in line and "--format csv" in line for line in lines)


def test_wide_letters_count_as_a_terminal_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = on_a_terminal(monkeypatch, pa.table({"a": ["漢字" * 100], "b": ["漢字" * 100]}), 50)
    assert max(map(cell_len, lines)) <= 50


def test_columns_that_would_be_slivers_become_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = pa.table({f"text_{i}": [TEXTS[:200]] for i in range(8)})
    lines = on_a_terminal(monkeypatch, wide)
    assert sum(line.strip().startswith("text_") for line in lines) == 8
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_a_file_has_every_line_of_a_cell() -> None:
    lines = "\n".join(f"line {i}" for i in range(CELL_LINES * 3))
    assert f"line {CELL_LINES * 3 - 1}" in written(pa.table({"a": [lines]}), Format.TABLE).decode()


def test_a_workbook_holds_numbers_and_texts(table: pa.Table) -> None:
    table = table.append_column("big", pa.array([2**53 + 1, 7, None]))
    table = table.append_column("formula", pa.array(["=1+1", "https://example.com", "007"]))
    import openpyxl

    sheet = openpyxl.load_workbook(io.BytesIO(written(table, Format.XLSX))).active
    head, *rows = [[cell.value for cell in row] for row in sheet.iter_rows()]
    assert head == table.schema.names
    assert rows == [
        ["a", '{"yes": 0.25}', -1.5, "2026-11-22", '["x", "ü"]', str(2**53 + 1), "=1+1"],
        ["b\nc", None, "nan", None, "[]", 7, "https://example.com"],
        ['d "e", f', "{}", None, None, None, None, "007"],
    ]
    assert {cell.data_type for row in sheet.iter_rows() for cell in row if cell.value == "=1+1"} == {"s"}


def test_a_workbook_is_not_for_a_terminal(table: pa.Table) -> None:
    with pytest.raises(UserError, match="a workbook is no text for a terminal"):
        written(table, Format.XLSX, terminal=True)


def test_what_a_sheet_cannot_hold_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="row 1, column a: a cell holds 32,767 characters, not 32,768"):
        written(pa.table({"a": ["x" * (LONGEST_TEXT + 1)]}), Format.XLSX)
    monkeypatch.setattr("flows.workbook.MOST_ROWS", 4)
    with pytest.raises(UserError, match="a sheet holds 3 rows; say LIMIT"):
        written(pa.table({"a": [1, 2, 3, 4]}), Format.XLSX)


def test_a_workbook_that_fails_keeps_nothing_on_the_disk() -> None:
    """A file that is removed and open has its bytes there until the exception that holds its sheet is forgotten."""
    with pytest.raises(UserError, match="a cell holds 32,767 characters") as refused:
        written(pa.table({"a": ["x" * (LONGEST_TEXT + 1)]}), Format.XLSX)
    assert refused.tb is not None
    opened = [os.readlink(place) for place in Path("/proc/self/fd").iterdir() if place.is_symlink()]
    assert not [name for name in opened if "trunkline-xlsx-" in name]


def test_a_workbook_without_its_library_says_which(table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xlsxwriter", None)
    with pytest.raises(UserError, match=r"pip install 'trunkline\[xlsx\]'"):
        written(table, Format.XLSX)


def test_a_database_has_a_table_of_the_files_name(table: pa.Table, tmp_path: Path) -> None:
    to = tmp_path / 'my "answers".duckdb'
    for _ in range(2):  # the second takes the place of the first
        write_table_file(to, table.schema, Answer(table).batches())
    with duckdb.connect(str(to), read_only=True) as made:
        assert made.sql("show tables").fetchall() == [('my "answers"',)]
        assert made.table('"my ""answers"""').to_arrow_table().to_pylist()[0]["probs"] == [("yes", 0.25)]
    assert to.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [to.name]


def test_a_database_that_has_more_than_an_earlier_answer_is_left_alone(tmp_path: Path) -> None:
    to = tmp_path / "warehouse.duckdb"
    check_table_file(to)
    with duckdb.connect(str(to)) as made:
        made.sql("create table warehouse as select 1 as n")
    check_table_file(to)
    with duckdb.connect(str(to)) as made:
        made.sql("create table orders as select 1 as n")
        made.sql("create view open_orders as from orders")
    said = r"^--to .*warehouse\.duckdb: has open_orders, orders, which would be lost; name a new file, and ATTACH "
    with pytest.raises(UserError, match=said):
        check_table_file(to)
    to.write_text("mine, and no database")
    with pytest.raises(UserError, match=r"^--to .*warehouse\.duckdb: cannot be replaced: .*; name another file$"):
        check_table_file(to)
    to.write_text("")
    check_table_file(to)


@pytest.mark.parametrize(
    ("made", "has"),
    [
        ("create macro twice(n) as 2 * n", "twice"),
        ("create sequence ids", "ids"),
        ("create type mood as enum ('good')", "mood"),
        ("create schema old; create table old.answers as select 1 as n", r"old\.answers"),
    ],
)
def test_what_else_a_database_has_is_not_lost(tmp_path: Path, made: str, has: str) -> None:
    to = tmp_path / "answers.duckdb"
    with duckdb.connect(str(to)) as connection:
        connection.execute(f"create table answers as select 1 as n; {made}")
    with pytest.raises(UserError, match=f"has {has}, which would be lost"):
        check_table_file(to)


def test_a_database_that_cannot_be_made_leaves_what_was_there(tmp_path: Path) -> None:
    to = tmp_path / "answers.duckdb"
    to.write_text("mine")

    def failing() -> Iterator[pa.RecordBatch]:
        yield pa.record_batch({"a": [1]})
        raise UserError("sql: cannot be cast")

    with pytest.raises(UserError, match="cannot be cast"):
        write_table_file(to, pa.schema([("a", pa.int64())]), failing())
    assert to.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [to.name]


def test_a_database_that_cannot_hold_the_table_is_one_line(tmp_path: Path) -> None:
    """The rest of the answer is not waited for."""

    def endless() -> Iterator[pa.RecordBatch]:
        while True:
            yield pa.record_batch({"a": [1]})

    wrong = pa.schema([("a", pa.int64()), ("A", pa.int64())])  # DuckDB takes both names for one
    with pytest.raises(UserError, match=r"^--to .*answers\.duckdb: "):
        write_table_file(tmp_path / "answers.duckdb", wrong, endless())
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_a_database_is_made_is_ctrl_c(tmp_path: Path) -> None:
    def stopped() -> Iterator[pa.RecordBatch]:
        yield pa.record_batch({"a": [1]})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_table_file(tmp_path / "answers.duckdb", pa.schema([("a", pa.int64())]), stopped())
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_the_last_rows_wait_to_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one, while more wait than the writer has room for, and the query has no more."""
    taken = HandedBatches.taken

    def slowly(handed: HandedBatches) -> Iterator[pa.RecordBatch]:
        for batch in taken(handed):
            time.sleep(0.2)
            yield batch

    def batches() -> Iterator[pa.RecordBatch]:
        for _ in range(4):
            yield pa.record_batch([[1]], ["a"])
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    monkeypatch.setattr(HandedBatches, "taken", slowly)
    with pytest.raises(KeyboardInterrupt):
        write_table_file(tmp_path / "answers.duckdb", pa.schema([("a", pa.int64())]), batches())
    assert list(tmp_path.iterdir()) == []


def test_a_database_is_a_file() -> None:
    with pytest.raises(UserError, match="--format duckdb: a database is a file of its own"):
        written(pa.table({"a": [1]}), Format.DUCKDB)
