"""Parquet globs: columns are joined by name, and folders name columns."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import UserError
from tasks.check import check_job
from tasks.preview import preview_rows
from tasks.source.kept import kept_type
from tasks.source.parquet_source import read_batches, read_schema
from tasks.source.partitions import partition_of
from tests.tasks.conftest import JobMaker
from tests.tasks.steps import ask, run_steps


def write(folder: Path, **files: dict[str, Any]) -> str:
    for name, columns in files.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return str(folder / "p*.parquet")


def test_columns_are_joined_by_name(job_of: JobMaker, tmp_path: Path) -> None:
    files = write(
        tmp_path, p1={"text": ["a"], "n": [1]}, p2={"hint": ["h"], "text": ["b"]}, p3={"text": ["c"], "n": [2]}
    )
    job = job_of(
        source={"parquet": files, "keep": ["hint", "n"]}, prompt={"template": "{{ text }}{{ hint or '' }}{{ n or '' }}"}
    )
    assert [one.prompt for one in preview_rows(job, 9)] == ["a1", "bh", "c2"]
    run_steps(job)
    assert ask(job.output_folder, "select hint, n from results order by custom_id") == [
        {"hint": None, "n": 1},
        {"hint": "h", "n": None},
        {"hint": None, "n": 2},
    ]


@pytest.mark.parametrize(
    ("first", "other", "kept"),
    [
        (pa.array([1], pa.int8()), pa.array([300], pa.int64()), [1, 300]),
        (pa.array([0.5], pa.float32()), pa.array([0.25], pa.float64()), [0.5, 0.25]),
        (pa.array(["a"]), pa.array(["b"]).dictionary_encode(), ["a", "b"]),
        (pa.array(["a"], pa.large_string()), pa.array([b"b"]), ["a", "b"]),
        (pa.nulls(1), pa.array([7]), [None, 7]),
        (pa.array([7]), pa.nulls(1), [7, None]),
    ],
    ids=["whole numbers", "floats", "dictionary", "bytes", "null first", "null last"],
)
def test_types_that_one_holds(
    job_of: JobMaker, tmp_path: Path, first: pa.Array, other: pa.Array, kept: list[Any]
) -> None:
    files = write(tmp_path, p1={"text": ["a"], "x": first}, p2={"text": ["b"], "x": other})
    job = job_of(source={"parquet": files, "keep": ["x"]})
    check_job(job)
    run_steps(job)
    assert [row["x"] for row in ask(job.output_folder, "select x from results order by custom_id")] == kept


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (pa.array(["a"]), pa.array([1])),
        (pa.array([1]), pa.array([1.5])),
        (pa.array([1]), pa.array([2**63], pa.uint64())),
        (pa.array([[1]]), pa.array([["a"]])),
        (pa.array([0]).cast(pa.timestamp("us")), pa.array([0]).cast(pa.timestamp("us", "UTC"))),
    ],
    ids=["text and number", "whole and float", "signed and not", "lists", "with and without a zone"],
)
def test_types_that_clash(job_of: JobMaker, tmp_path: Path, first: pa.Array, other: pa.Array) -> None:
    files = write(tmp_path, p1={"text": ["a"], "x": first}, p2={"text": ["b"], "x": other})
    with pytest.raises(UserError) as said:
        check_job(job_of(source={"parquet": files, "keep": ["x"]}))
    assert f"source.parquet: column 'x' is {pq.read_schema(tmp_path / 'p1.parquet').field('x').type} in " in str(
        said.value
    )
    assert "p1.parquet and " in str(said.value)
    assert "p2.parquet; write it with one type" in str(said.value)
    run_steps(job_of(source={"parquet": files}))  # where the job does not read it, no harm is done


def test_partitions_are_columns(job_of: JobMaker, tmp_path: Path) -> None:
    for year, month in (("2025", "01"), ("2026", "a%2Fb"), ("2026", "__HIVE_DEFAULT_PARTITION__")):
        folder = tmp_path / f"year={year}" / f"month={month}"
        folder.mkdir(parents=True)
        write(folder, p={"text": ["x"]})
    job = job_of(
        source={"parquet": str(tmp_path / "**" / "*.parquet"), "keep": ["year", "month"]},
        prompt={"template": "{{ year }} {{ month or '-' }}"},
    )
    assert [one.prompt for one in preview_rows(job, 9)] == ["2025 01", "2026 -", "2026 a/b"]
    run_steps(job)
    assert ask(job.output_folder, "select year, month from results order by all nulls first") == [
        {"year": "2025", "month": "01"},
        {"year": "2026", "month": None},
        {"year": "2026", "month": "a/b"},
    ]


def test_a_column_of_the_file_is_before_the_folders(job_of: JobMaker, tmp_path: Path) -> None:
    folder = tmp_path / "year=2026"
    folder.mkdir()
    job = job_of(source={"parquet": write(folder, p={"year": [1999]})}, prompt={"column": "year"})
    assert [one.prompt for one in preview_rows(job, 9)] == ["1999"]


def test_a_renamed_partition_is_another_source(job_of: JobMaker, tmp_path: Path) -> None:
    folder = tmp_path / "year=2025"
    folder.mkdir()
    write(folder, p={"text": ["x"]})
    job = job_of(source={"parquet": str(tmp_path / "*" / "*.parquet"), "keep": ["year"]})
    run_steps(job)
    folder.rename(tmp_path / "year=2026")
    run_steps(job)
    assert ask(job.output_folder, "select year from results") == [{"year": "2026"}]


def test_a_folder_that_names_nothing() -> None:
    assert partition_of(Path("/data/=x/a=b=c/k=/f=1.parquet")) == {"a": "b=c", "k": ""}


def _beyond(values: pa.Array) -> pa.DictionaryArray:
    """The second of four indices names no value, as a damaged file has it; a file's indices have few bits."""
    return pa.DictionaryArray.from_arrays(pa.array([0, len(values), None, 1], pa.int32()), values, safe=False)


@pytest.mark.parametrize(
    "column",
    [
        pytest.param(lambda bad: bad, id="flat"),
        pytest.param(lambda bad: pa.ListArray.from_arrays([0, 1, 2, 3, 4], bad), id="in lists"),
        pytest.param(lambda bad: pa.StructArray.from_arrays([pa.array(range(4)), bad], ["n", "x"]), id="in structs"),
        pytest.param(lambda bad: pa.MapArray.from_arrays([0, 1, 2, 3, 4], pa.array([*"abcd"]), bad), id="in maps"),
    ],
)
def test_an_index_that_names_no_value_is_one_line(tmp_path: Path, column: Callable[[pa.Array], pa.Array]) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": column(_beyond(pa.array(["a", "b", "c"])))}), path, write_statistics=False)
    said = r"rows\.parquet cannot be read as Parquet \(an index of a dictionary of 3 values is 0 to 3\)$"
    with pytest.raises(UserError, match=said):
        list(read_batches([path], ["text"]))


def test_a_zone_whose_name_is_damaged_is_none_that_is_known(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"when": pa.array([1], pa.timestamp("ns", "UTC"))}), path)
    stored = pq.read_metadata(path).metadata[b"ARROW:schema"]
    damaged = base64.b64encode(base64.b64decode(stored).replace(b"UTC", b"\xffTC"))
    path.write_bytes(path.read_bytes().replace(stored, damaged))
    field = read_schema([path], ["when"]).field("when")
    with pytest.raises(
        UserError, match=r"^source\.keep: column 'when' has type timestamp.*, which results cannot carry$"
    ):
        kept_type(field)
