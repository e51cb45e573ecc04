"""SQL about an output folder: what it can see, and what it cannot do."""

import shutil
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import UserError
from flows.run_sql import run_sql, show_attach
from tasks.job.job import ScoringJob
from tasks.query import query
from tests.tasks.conftest import JobMaker
from tests.tasks.steps import ask, run_steps, table

ROWS = [{"id": f"r{i}", "text": f"text {i}" if i else None, "topic": i} for i in range(5)]


@pytest.fixture
def finished(job_of: JobMaker) -> ScoringJob:
    job = job_of(ROWS, source={"id": "id", "keep": ["topic"]})
    run_steps(job)
    return job


def in_shell(folder: Path, sql: str) -> list[Any]:
    """As a person's own program: the database file, and where its files are."""
    config = {"file_search_path": str(folder)}
    with duckdb.connect(str(folder / "results.duckdb"), read_only=True, config=config) as connection:
        return connection.sql(sql).fetchall()


def test_views_and_their_columns(finished: ScoringJob) -> None:
    views = ask(finished.output_folder, "show tables")
    assert [view["name"] for view in views] == [
        "dictionary",
        "errors",
        "label_counts",
        "prefix_savings",
        "results",
        "runs",
        "shards",
        "throughput",
    ]
    columns = (
        "custom_id row_index status task generated_text reasoning parsed finish_reason prompt_tokens completion_tokens "
        "cached_tokens cumulative_logprob logprobs outputs prompt_logprobs label label_norm label_probs label_logprobs "
        "missing_mass score scores logprob is_greedy perplexity min_margin embedding error_type error_message "
        "attempts run_id request_hash topic"
    )
    for view in ("results", "errors"):
        with query(finished.output_folder, f"select * from {view}") as result:
            assert result.columns == tuple(columns.split())
    assert in_shell(finished.output_folder, "select count(*) from results") == [(4,)]
    assert in_shell(finished.output_folder, "select label_probs[label] > 0 from results limit 1") == [(True,)]


def test_row_index_is_the_sources_order_over_several_files(job_of: JobMaker, tmp_path: Path) -> None:
    names = [["z", "b", "empty"], ["a"], ["y", "c"]]
    for i, ids in enumerate(names):
        rows = [{"id": name, "text": f"text {name}" if name != "empty" else None} for name in ids]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"part-{i}.parquet")
    job = job_of(source={"parquet": str(tmp_path / "part-*.parquet"), "id": "id"})
    run_steps(job)
    rows = ask(job.output_folder, "select custom_id, row_index from results order by row_index")
    assert [tuple(row.values()) for row in rows] == [("z", 0), ("b", 1), ("a", 3), ("y", 4), ("c", 5)]
    assert ask(job.output_folder, "select row_index from errors") == [{"row_index": 2}]


def test_a_kept_column_named_row_index_is_refused(job_of: JobMaker) -> None:
    with pytest.raises(UserError, match=r"'row_index' is a column that the results have already; give it another name"):
        job_of([{"text": "a", "row_index": 1}], source={"keep": ["row_index"]})
    job = job_of([{"text": "a", "row_index": 7}], source={"keep": {"row_index": "my_row_index"}})
    run_steps(job)
    assert ask(job.output_folder, "select row_index, my_row_index from results") == [
        {"row_index": 0, "my_row_index": 7}
    ]


def test_columns_of_one_name_are_numbered_in_every_form(finished: ScoringJob, tmp_path: Path) -> None:
    joined = "select a.custom_id, b.custom_id, 1 as N, 2 as n from results a join results b using (request_hash)"
    names = ("custom_id", "custom_id_1", "N", "n_1")
    with query(finished.output_folder, joined) as result:
        assert result.columns == names
    for name in ("joined.json", "joined.parquet", "joined.duckdb"):
        run_sql(joined, str(finished.output_folder), None, tmp_path / name)
        with duckdb.connect() as connection:
            connection.execute(f"attach '{tmp_path / 'joined.duckdb'}' as made") if name == "joined.duckdb" else None
            made = connection.sql(f"from {'made.joined' if name == 'joined.duckdb' else repr(str(tmp_path / name))}")
            assert (tuple(made.columns), len(made.fetchall())) == (names, 4)


def test_types_that_arrow_does_not_hold_are_duckdbs_texts(finished: ScoringJob, tmp_path: Path) -> None:
    asked = "select interval 5 second as took, '101'::bit as bits, [interval 1 day] as days, sequence from runs"
    assert ask(finished.output_folder, asked) == [{"took": "00:00:05", "bits": "101", "days": "[1 day]", "sequence": 1}]
    run_sql(asked, str(finished.output_folder), None, tmp_path / "took.parquet")
    assert duckdb.read_parquet(str(tmp_path / "took.parquet")).fetchall() == [("00:00:05", "101", "[1 day]", 1)]


def test_the_folders_own_database_is_not_replaced(finished: ScoringJob) -> None:
    own = finished.output_folder / "results.duckdb"
    before = own.read_bytes()
    with pytest.raises(UserError, match=r"results\.duckdb: has .*, which would be lost"):
        run_sql("from results", str(finished.output_folder), None, own)
    assert own.read_bytes() == before


def test_a_moved_folder_answers_as_before(finished: ScoringJob, tmp_path: Path) -> None:
    before = table(finished)
    moved = tmp_path / 'it\'s "moved"'
    shutil.move(finished.output_folder, moved)
    assert ask(moved, "select count(*) as n from results") == [{"n": 4}]
    assert in_shell(moved, "select count(*) from errors") == [(1,)]
    shutil.move(moved, finished.output_folder)
    assert table(finished) == before


@pytest.mark.parametrize("name", ["answers.xlsx", "answers.csv"])
def test_an_export_that_fails_leaves_the_file_that_was_there(finished: ScoringJob, tmp_path: Path, name: str) -> None:
    to = tmp_path / name
    to.write_text("mine")
    too_long = "select custom_id, repeat('x', 40000) as long from results"
    fails_late = "select if(i < 5000, 1, error('no more')) as n from range(10000) as t(i)"
    with pytest.raises(UserError, match=r"a cell holds|no more"):
        run_sql(too_long if name.endswith(".xlsx") else fails_late, finished.output_folder, None, to)
    assert to.read_text() == "mine"
    run_sql("select 1 as n", finished.output_folder, None, to)
    assert to.read_bytes().startswith(b"PK" if name.endswith(".xlsx") else b"n\n1\n")


def test_the_working_directory_is_never_looked_into(
    finished: ScoringJob, job_of: JobMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_steps(job_of(ROWS[:2], output=str(tmp_path / "other")))
    monkeypatch.chdir(tmp_path / "other")
    assert ask(finished.output_folder, "select count(*) as n from results") == [{"n": 4}]
    assert in_shell(finished.output_folder, "select count(*) from results") == [(4,)]
    assert in_shell(finished.output_folder, "select rows from runs") == [(5,)]


def test_any_duckdb_attaches_the_views_from_anywhere(
    job_of: JobMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_of(ROWS, source={"id": "id", "keep": ["topic"]}, output=str(tmp_path / 'it\'s "here"; drop view results'))
    run_steps(job)
    monkeypatch.chdir("/")
    show_attach(job.output_folder)
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    with duckdb.connect() as connection:
        connection.execute(line)
        assert connection.sql("select count(*) from results").fetchall() == [(4,)]
        assert connection.sql("select custom_id, error_type from errors").fetchall() == [("r0", "EMPTY_PROMPT")]
        assert connection.sql("select rows from runs").fetchall() == [(5,)]
        assert connection.sql("select sum(requests) from shards").fetchall() == [(4,)]
        with pytest.raises(duckdb.Error, match="read-only"):
            connection.execute("create table x (a int)")


def test_what_cannot_be_attached_is_one_line(finished: ScoringJob, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no results\.duckdb; name the output folder"):
        show_attach(tmp_path / "nowhere")
    moved = tmp_path / "a,b"
    shutil.move(finished.output_folder, moved)
    with pytest.raises(UserError, match="split at commas"):
        show_attach(moved)


def test_results_outlive_the_database_file(finished: ScoringJob) -> None:
    (finished.output_folder / "results.duckdb").unlink()
    assert ask(finished.output_folder, "select count(*) as n from results") == [{"n": 4}]
    run_steps(finished)
    assert in_shell(finished.output_folder, "select count(*) from results") == [(4,)]


@pytest.mark.fault(23, 24)
@pytest.mark.parametrize(
    "sql",
    [
        "drop view results",
        "create table x (a int)",
        "insert into results values (1)",
        "copy results to '{canary}'",
        "copy (select 1) to '{folder}/parts/x.parquet'",
        "attach '{canary}' as x",
        "set enable_external_access = true",
        "reset lock_configuration",
        "pragma database_list; select 1",
        "select 1; drop view results",
        "explain analyze copy results to '{canary}'",
        "install httpfs",
        "load httpfs",
        "export database '{canary}'",
        "call pragma_version()",
        "select * from read_csv('/etc/passwd')",
        "select * from read_text('{outside}')",
        "select * from '{outside}'",
        "select * from read_text('{folder}/../outside.txt')",
        "select * from read_text('{folder}/link.txt')",
        "select * from glob('{folder}/../*')",
        "select * from 'https://example.com/x.parquet'",
        "select getenv('HOME')",
        "",
        "-- nothing",
        "selec",
        "select * from nothing",
        "select cast(custom_id as int) from results",
    ],
)
def test_refused_in_one_line(finished: ScoringJob, tmp_path: Path, sql: str) -> None:
    outside, canary = tmp_path / "outside.txt", tmp_path / "canary"
    outside.write_text("secret")
    (finished.output_folder / "link.txt").symlink_to(outside)
    before = {path: path.stat().st_mtime_ns for path in finished.output_folder.rglob("*")}
    asked = sql.format(folder=finished.output_folder, outside=outside, canary=canary)
    with pytest.raises(UserError) as said:
        ask(finished.output_folder, asked)
    assert "\n" not in str(said.value)
    assert "secret" not in str(said.value)
    assert not canary.exists()
    assert {path: path.stat().st_mtime_ns for path in finished.output_folder.rglob("*")} == before


@pytest.mark.fault(23)
def test_names_cannot_become_sql(job_of: JobMaker, tmp_path: Path) -> None:
    evil = "x\" from results; drop view results; --'"
    rows = [{"id": "a'; drop view results; --", "text": "one", evil: "kept {braces}"}]
    job = job_of(rows, source={"id": "id", "keep": [evil]}, output=str(tmp_path / "it's {here}; drop view results"))
    run_steps(job)
    [row] = table(job)
    assert row[evil] == "kept {braces}"
    assert row["custom_id"] == "a'; drop view results; --"


def test_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no results"):
        query(tmp_path, "select 1")


def test_rows_come_in_batches(finished: ScoringJob) -> None:
    with query(finished.output_folder, "select * from range(100000)") as result:
        sizes = [batch.num_rows for batch in result.batches()]
    assert sum(sizes) == 100_000
    assert max(sizes) <= 10_000


def test_sorting_and_joining_work_under_lock(finished: ScoringJob) -> None:
    sql = "select r.label, count(*) as n from results r join runs using (run_id) group by all order by all"
    assert ask(finished.output_folder, sql)


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("select lable from results", r'"lable" not found in FROM clause! Candidate bindings: "label'),
        ("from resultz", r'resultz does not exist! Did you mean "results"\?$'),
        ("select r.lable from results r", r'a column named "lable"( Candidate bindings: .*)?$'),
        ("select label, count(*) from results", r"aggregate function\. Either add it to the GROUP BY list, "),
        ("select sum(label, 2) from results", r"No function matches [^\n]*$"),
        ("selec 1", r'syntax error at or near "selec"$'),
    ],
)
def test_what_duckdb_would_have_known_is_said(finished: ScoringJob, sql: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        ask(finished.output_folder, sql)
    assert "\n" not in str(refused.value)
