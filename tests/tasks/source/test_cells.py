"""Every Arrow type, in each place that a job has for a column."""

import io
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flows import cli
from flows.result_writer import write_result
from flows.sql_format import Format
from tasks.query import query
from tasks.source.cells import cells, has_cells, text_of
from tasks.source.row_error import BAD_VALUE, RowError
from tasks.source.source_rows import read_batches
from tasks.storage.statements import identifier
from tests.tasks.arrow_types import DOCS, TYPES, ArrowType, with_table
from tests.tasks.conftest import JobMaker
from tests.tasks.steps import ask, run_steps

BY_NAME = [pytest.param(one, id=name) for name, one in TYPES.items()]
STORED = [pytest.param(one, id=name) for name, one in TYPES.items() if one.in_parquet]
IDS = [
    pytest.param(one, id=name) for name, one in TYPES.items() if one.in_parquet and one.by_id and one.text is not None
]
KEPT = {name: one for name, one in TYPES.items() if one.kept is not None}
USES: dict[str, dict[str, Any]] = {
    "prompt.column": {"prompt": {"column": "x"}},
    "prompt.template": {"prompt": {"template": "{{ x }}"}},
    "source.id": {"prompt": {"column": "text"}, "id": "x"},
    "source.keep": {"prompt": {"column": "text"}, "keep": ["x"]},
}


@pytest.mark.parametrize("one", BY_NAME)
def test_in_a_prompt(one: ArrowType) -> None:
    assert has_cells(one.array.type) == (one.text is not None)
    if one.text is not None:
        value, null = cells(one.array)
        assert text_of(value) == one.text
        assert null is None


@pytest.mark.parametrize("one", IDS)
def test_as_an_id(one: ArrowType, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": one.array[:1]}), tmp_path / "t.parquet")
    [batch] = read_batches([tmp_path / "t.parquet"], ["x"])
    assert batch.ids("x") == [one.text]


@pytest.mark.parametrize("key", USES)
@pytest.mark.parametrize("one", STORED)
def test_a_refused_type_is_one_line_with_its_key(
    one: ArrowType, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = {
        "prompt.column": one.text is None,
        "prompt.template": one.text is None,
        "source.id": (one.text is None or not one.by_id) and not pa.types.is_null(one.array.type),
        "source.keep": one.kept is None,
    }[key]
    pq.write_table(pa.table({"x": one.array, "text": ["a", "b"]}), tmp_path / "t.parquet")
    use = USES[key]
    source = {"parquet": str(tmp_path / "t.parquet"), **{name: use[name] for name in ("id", "keep") if name in use}}
    # The model comes after the columns.
    job = {
        "name": "t",
        "source": source,
        "prompt": use["prompt"],
        "task": {"type": "generate"},
        "model": {"path": "no"},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    monkeypatch.setattr(sys, "argv", ["trunkline", "score", str(path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(
        f"trunkline: {path}: {key}: column 'x' has type " if refused else f"trunkline: {path}: model.path: "
    )


def test_kept_columns_of_every_type(job_of: JobMaker) -> None:
    rows = pa.table({"text": ["a", "b"], **{name: one.array for name, one in KEPT.items()}})
    job = job_of(rows, prompt={"column": "text"}, source={"keep": list(KEPT)})
    run_steps(job)
    described = ask(job.output_folder, "select column_name, column_type from (describe results)")
    kinds = {column["column_name"]: column["column_type"] for column in described}
    columns = ", ".join(map(identifier, KEPT))
    lines = printed(job.output_folder, f"select {columns} from results order by custom_id", Format.CSV)
    [_, values, nulls] = [re.findall(r'(?:^|,)("(?:[^"]|"")*"|[^",]*)', line) for line in lines]
    for (name, one), value, null in zip(KEPT.items(), values, nulls, strict=True):
        assert (name, kinds[name], null) == (name, one.kept, "")
        if getattr(one.array.type, "tz", None) is None:
            assert value == as_csv(one.sql or "")
        else:  # it is shown in the reader's own zone
            assert datetime.fromisoformat(value) == datetime.fromisoformat(one.sql or "")
    for form in set(Format) - {Format.DUCKDB}:  # a database is a file of its own
        assert printed(job.output_folder, "select * from results", form)


def as_csv(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if set(text) & set('",') else text


def printed(folder: Path, sql: str, form: Format) -> list[str]:
    out = io.BytesIO()
    with query(folder, sql) as result:
        write_result(result, form, out, terminal=False)
    return out.getvalue().decode("utf-8", "replace").splitlines()


def test_the_documents_table_is_this_one() -> None:
    assert with_table(DOCS.read_text()) == DOCS.read_text()


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
@pytest.mark.parametrize("zone", [None, "UTC", "Pacific/Auckland"])
def test_a_date_out_of_range_costs_its_row_alone(unit: str, zone: str | None) -> None:
    kind = pa.timestamp(unit, zone)
    bad, good, null = cells(pa.array([2**62, 0, None], pa.int64()).cast(kind))
    assert isinstance(bad, RowError)
    assert bad.type == BAD_VALUE
    assert str(good).startswith("1970-01-01 ")
    assert null is None
    [listed] = cells(pa.array([[0, 2**62]], pa.list_(pa.int64())).cast(pa.list_(kind)))
    assert isinstance(listed, RowError)


def test_a_row_with_a_bad_date_is_an_error_and_the_others_go_on(job_of: JobMaker) -> None:
    at = pa.array([2**62, 0], pa.int64()).cast(pa.timestamp("us"))
    job = job_of(pa.table({"at": at}), prompt={"template": "At {{ at }}."}, source={"keep": ["at"]})
    run_steps(job)
    assert ask(job.output_folder, "select custom_id, error_type, error_message from errors") == [
        {"custom_id": "0", "error_type": "BAD_VALUE", "error_message": "column 'at': a date or time is out of range"}
    ]
    assert ask(job.output_folder, "select custom_id from results") == [{"custom_id": "1"}]
    assert len(printed(job.output_folder, "from errors", Format.CSV)) == 2


def test_a_map_with_a_key_twice_has_no_text() -> None:
    [value] = cells(pa.array([[("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int64())))
    assert value == RowError(BAD_VALUE, "a map has a key twice")


def test_text_that_is_not_utf8_inside_a_list_costs_no_other_row(job_of: JobMaker) -> None:
    words = pa.array([b"good", b"b\xffd"]).cast(pa.string(), safe=False)
    broken = pa.StringArray.from_buffers(2, *words.cast(pa.binary()).buffers()[1:])
    tags = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), broken)
    who = pa.StructArray.from_arrays([broken], names=["name"])
    job = job_of(
        pa.table({"tags": tags, "who": who}), prompt={"template": "{{ tags[0] }}"}, source={"keep": ["tags", "who"]}
    )
    run_steps(job)
    rows = ask(
        job.output_folder, "select error_type, tags, who from errors union all select null, tags, who from results"
    )
    assert rows == [
        {"error_type": "BAD_ENCODING", "tags": ["b\ufffdd"], "who": {"name": "b\ufffdd"}},
        {"error_type": None, "tags": ["good"], "who": {"name": "good"}},
    ]


STRUCTS = st.none() | st.fixed_dictionaries(
    {"a": st.none() | st.lists(st.none() | st.integers(-(2**60), 2**60)), "b": st.none() | st.text()}
)


@given(st.lists(STRUCTS, min_size=1), st.data())
def test_lists_and_structs_wherever_a_batch_is_cut(values: list[Any], data: st.DataObject) -> None:
    kind = pa.struct([("a", pa.list_(pa.int64())), ("b", pa.string())])
    first = data.draw(st.integers(0, len(values) - 1))
    assert cells(pa.array(values, kind).slice(first)) == values[first:]
