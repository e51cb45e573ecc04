"""One answer in four forms."""

import csv
import io
import json
from collections.abc import Iterator
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import UserError
from flows.result_writer import TABLE_ROWS, write_result
from flows.sql_format import Format


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
