"""What a source may hold, and what is refused before any work."""

import datetime
import decimal
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import UserError
from tasks import extract
from tasks.check import check_job
from tasks.preview import preview_rows
from tasks.storage.run import open_run
from tests.tasks.conftest import JobMaker
from tests.tasks.steps import ask, outcomes, plan_alone, run_steps, table


def broken_texts() -> pa.Array:
    values = b"good\xff\xfegood"
    return pa.StringArray.from_buffers(
        3, pa.py_buffer(bytes([0, 0, 0, 0, 4, 0, 0, 0, 6, 0, 0, 0, 10, 0, 0, 0])), pa.py_buffer(values)
    )


def test_parquet_files_in_the_order_of_their_names(job_of: JobMaker, tmp_path: Path) -> None:
    for name in ("b", "a"):
        pq.write_table(pa.table({"text": [name, name * 2]}), tmp_path / f"part-{name}.parquet")
    job = job_of(source={"parquet": str(tmp_path / "part-*.parquet"), "keep": ["text"]})
    run_steps(job)
    kept = ask(job.output_folder, "select text from results order by custom_id")
    assert [row["text"] for row in kept] == ["a", "aa", "b", "bb"]


def test_parquet_with_broken_text(job_of: JobMaker) -> None:
    job = job_of(pa.table({"text": broken_texts(), "id": ["a", "b", "c"]}), source={"id": "id", "keep": ["text"]})
    run_steps(job)
    assert outcomes(job) == {"a": "ok", "b": "BAD_ENCODING", "c": "ok"}
    assert [row["text"] for row in table(job)] == ["good", "\ufffd\ufffd", "good"]


def test_text_columns_of_every_kind(job_of: JobMaker) -> None:
    texts = ["one", "two", None]
    columns = {
        "text": pa.array(texts).dictionary_encode(),
        "large": pa.array(texts, pa.large_string()),
        "view": pa.array(texts, pa.string_view()),
        "binary": pa.array([None if text is None else text.encode() for text in texts], pa.binary()),
    }
    for column in columns:
        job = job_of(pa.table(columns), prompt={"column": column}, source={"keep": list(columns)})
        run_steps(job)
        assert outcomes(job) == {"0": "ok", "1": "ok", "2": "EMPTY_PROMPT"}
        assert table(job)[0]["binary"] == "one"


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([3, 1, 2], ["3", "1", "2"]),
        ([decimal.Decimal("1.50"), decimal.Decimal("2.00"), decimal.Decimal("3.25")], ["1.50", "2.00", "3.25"]),
        ([datetime.date(2026, 1, day) for day in (1, 2, 3)], ["2026-01-01", "2026-01-02", "2026-01-03"]),
        (["é", "\u4f60", "'; drop table results; --"], ["é", "\u4f60", "'; drop table results; --"]),
    ],
    ids=["int", "decimal", "date", "text"],
)
def test_ids_become_texts(job_of: JobMaker, values: list[Any], texts: list[str]) -> None:
    job = job_of(pa.table({"n": values, "text": ["a", "b", "c"]}), source={"id": "n"})
    run_steps(job)
    assert set(outcomes(job)) == set(texts)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"prompt": {"column": "txt"}}, "prompt.column: the source has no column 'txt'; did you mean 'text'?"),
        ({"prompt": {"template": "{{ text }} {{ titel }}"}}, "prompt.template: the source has no column 'titel'"),
        ({"prompt": {"messages": "chat"}}, "prompt.messages: the source has no column 'chat'"),
        ({"source": {"id": "ID"}}, "source.id: the source has no column 'ID'; did you mean 'id'?"),
        ({"source": {"keep": ["topic"]}}, "source.keep.topic: the source has no column 'topic'"),
        ({"task": {"type": "choice", "labels_column": "options"}}, "task.labels_column: the source has no column"),
        ({"prompt": {"template": "{{ text"}}, "prompt.template: line 1: "),
        ({"prompt": {"template": "{% include 'x' %}{{ text }}"}}, "include, import and extends are not there"),
        ({"prompt": {"template": "constant"}}, "prompt.template: names no column"),
        ({"model": {"path": "/absent/model"}}, "model.path: no folder /absent/model; give a folder with safetensors"),
        (
            {"model": {"path": "org/Model-1B"}},
            f"no folder org/Model-1B (looked from {Path.cwd()}); nothing is fetched from a hub: hf download org/",
        ),
        ({"engine": {"device": "cuda:7"}}, "engine.device: "),
        (
            {"engine": {"device": "cpu", "kv_cache_memory": "1MiB", "block_size": 100000}},
            "engine.kv_cache_memory: holds",
        ),
    ],
)
def test_a_job_that_cannot_run_is_refused_at_once(job_of: JobMaker, changes: dict[str, Any], line: str) -> None:
    job = job_of(pa.table({"id": ["a"], "text": ["b"]}), **changes)
    for attempt in (check_job, run_steps):
        with pytest.raises(UserError, match=r".") as said:
            attempt(job)
        assert line in str(said.value)
        assert "\n" not in str(said.value)


def test_output_that_is_somebody_elses_folder(job_of: JobMaker, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    job = job_of(pa.table({"text": ["b"]}), output=str(tmp_path / "mine"))
    for attempt in (check_job, run_steps):
        with pytest.raises(UserError, match="holds other files"):
            attempt(job)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_sources_that_are_not_there(job_of: JobMaker, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source.parquet: no file matches"):
        check_job(job_of(source={"parquet": str(tmp_path / "*.none")}))
    (tmp_path / "half.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"half.parquet cannot be read as Parquet"):
        check_job(job_of(source={"parquet": str(tmp_path / "half.parquet")}))


@pytest.mark.fault(23)
def test_names_with_dots_and_names_given_twice(job_of: JobMaker, tmp_path: Path) -> None:
    rows = pa.table({"a.b": ["one"], "a": [{"b": "two"}], 'ä "q"': ["kept"]})
    job = job_of(rows, prompt={"column": "a.b"}, source={"keep": ["a.b", "a", 'ä "q"']})
    run_steps(job)
    [row] = table(job)
    assert (row["a.b"], row["a"], row['ä "q"']) == ("one", {"b": "two"}, "kept")
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pytest.raises(UserError, match=r"has column 'text' twice"):
        check_job(job_of(twice))


def test_a_type_that_results_cannot_carry(job_of: JobMaker) -> None:
    rows = pa.table({"text": ["a"], "wait": pa.array([5], pa.duration("s"))})
    with pytest.raises(UserError, match=r"source.keep: column 'wait' has type duration"):
        run_steps(job_of(rows, source={"keep": ["wait"]}))


def test_kept_columns_keep_their_types(job_of: JobMaker) -> None:
    when = datetime.datetime(2026, 1, 2, 3, 4, 5)
    row = {"text": "a", "n": 1, "x": 0.5, "yes": True, "when": when, "tags": ["p", None], "who": {"name": "z"}}
    job = job_of(
        [row], source={"keep": {"n": "n", "x": "x", "yes": "yes", "when": "when", "tags": "tags", "who": 'a b"c'}}
    )
    run_steps(job)
    [kept] = table(job)
    assert [kept[name] for name in ("n", "x", "yes", "when", "tags", 'a b"c')] == list(row.values())[1:]


@pytest.mark.fault(13)
def test_a_source_that_changes_while_it_is_read(
    job_of: JobMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(pa.table({"id": ["1"], "text": ["a"]}), source={"id": "id"})
    check_ids = extract.check_ids

    def change(*arguments: Any) -> None:
        pq.write_table(pa.table({"id": ["1"], "text": ["b"]}), tmp_path / "rows.parquet")
        check_ids(*arguments)

    monkeypatch.setattr(extract, "check_ids", change)
    with pytest.raises(UserError, match=r"rows.parquet changed while it was read"):
        run_steps(job)


# -- DuckDB


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "warehouse.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "create table docs as select i as id, 'text ' || i as text, i % 3 as topic from range(10) t(i)"
        )
    return path


def duck_job(job_of: JobMaker, database: Path, query: str, **source: Any) -> Any:
    return job_of(source={"duckdb": {"database": str(database), "query": query}, **source})


def test_a_query_on_a_database(job_of: JobMaker, database: Path) -> None:
    job = duck_job(job_of, database, "select * from docs where topic < 2 order by id; -- all", id="id", keep=["topic"])
    before = database.read_bytes()
    check_job(job)
    run_steps(job)
    assert set(outcomes(job)) == {"0", "1", "3", "4", "6", "7", "9"}
    assert {row["topic"] for row in table(job)} == {0, 1}
    assert database.read_bytes() == before
    assert not list(job.output_folder.rglob("source.parquet"))


def test_an_unchanged_query_is_taken_up(job_of: JobMaker, database: Path) -> None:
    job = duck_job(job_of, database, "select * from docs order by id", id="id")
    plan_alone(job)
    with open_run(job) as run:
        assert extract.extract_rows(run).reused_plan is not None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("interval 90061 seconds", "25:01:01"),
        ("'1010'::bit", "1010"),
        ("'12:00:00+02'::timetz", "12:00:00+02"),
        ("340282366920938463463374607431768211455::uhugeint", "340282366920938463463374607431768211455"),
        ("170141183460469231731687303715884105727::hugeint", "170141183460469231731687303715884105727"),
        ("123456789012345678901234567890123456789012345::bignum", "123456789012345678901234567890123456789012345"),
        ("union_value(x := 1)", "1"),
        ("[interval 1 day]", "[1 day]"),
        ("{'a': '101'::bit}", "{'a': 101}"),
        ("'x'::enum('x', 'y')", "x"),
        ("{'a': [1, null]}", '{"a": [1, null]}'),
        ("map {'k': timestamp_ns '2026-01-01 00:00:00.000000001'}", '{"k": "2026-01-01 00:00:00.000000001"}'),
        ("date 'infinity'", None),
    ],
)
def test_a_querys_types(job_of: JobMaker, database: Path, value: str, text: str | None) -> None:
    job = duck_job(job_of, database, f"select {value} as text", keep=["text"])
    [one] = preview_rows(job, 1)
    assert (one.prompt, one.error and one.error.type) == (text, "BAD_VALUE" if text is None else None)
    run_steps(job)
    [counted] = ask(job.output_folder, 'select count(*) as n from results where "text" is not null')
    assert counted["n"] == (text is not None)


@pytest.mark.fault(23, 24)
@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("select * from nothing", "source.duckdb.query: Catalog Error"),
        ("selec", "source.duckdb.query: Parser Error"),
        ("select 1; select 2", "give one SELECT statement"),
        ("delete from docs", "give one SELECT statement (found: DELETE)"),
        ("copy docs to '/tmp/canary.csv'", "give one SELECT statement (found: COPY)"),
        ("attach '/tmp/other.duckdb'", "give one SELECT statement (found: ATTACH)"),
        ("select content as text from read_text('/etc/hostname')", "source.duckdb.query: Permission Error"),
    ],
)
def test_queries_that_are_refused(job_of: JobMaker, database: Path, query: str, line: str) -> None:
    for attempt in (check_job, run_steps):
        with pytest.raises(UserError) as said:
            attempt(duck_job(job_of, database, query))
        assert line in str(said.value)
        assert "\n" not in str(said.value)


def test_a_database_that_is_not_there_or_none(job_of: JobMaker, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source.duckdb.database: no file"):
        check_job(duck_job(job_of, tmp_path / "absent.duckdb", "select 1"))
    (tmp_path / "text.duckdb").write_text("not a database" * 1000)
    with pytest.raises(UserError, match=r"source.duckdb.database: .*text.duckdb cannot be opened"):
        check_job(duck_job(job_of, tmp_path / "text.duckdb", "select 1"))


def test_a_database_that_another_process_writes(job_of: JobMaker, database: Path) -> None:
    hold = f"import duckdb, sys; c = duckdb.connect({str(database)!r}); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(UserError, match="another process has it open for writing"):
            check_job(duck_job(job_of, database, "select * from docs"))
        holder.kill()


# -- labels and messages in columns


def test_labels_and_messages_as_lists_or_json(job_of: JobMaker) -> None:
    chat = [{"role": "user", "content": "hello"}]
    rows = pa.Table.from_pylist(
        [
            {"id": "list", "chat": chat, "options": [" a", " b"]},
            {"id": "empty", "chat": [], "options": [" a", " b"]},
            {"id": "role", "chat": [{"role": "pirate", "content": "x"}], "options": [" a"]},
            {"id": "content", "chat": [{"role": "user", "content": None}], "options": [" a"]},
            {"id": "blank", "chat": [{"role": "user", "content": " "}], "options": [" a"]},
            {"id": "nul", "chat": [{"role": "user", "content": "\x00"}], "options": [" a"]},
            {"id": "twice", "chat": chat, "options": [" a", " a"]},
            {"id": "none", "chat": chat, "options": []},
            {"id": "null", "chat": chat, "options": [" a", None]},
        ]
    )
    expected = {
        "list": "ok",
        "empty": "EMPTY_PROMPT",
        "role": "BAD_MESSAGES",
        "content": "BAD_MESSAGES",
        "blank": "EMPTY_PROMPT",
        "nul": "BAD_ENCODING",
        "twice": "BAD_LABELS",
        "none": "BAD_LABELS",
        "null": "BAD_LABELS",
    }
    as_json = [row | {key: json.dumps(row[key]) for key in ("chat", "options")} for row in rows.to_pylist()]
    broken = [{"id": "json", "chat": "[{", "options": "[]"}, {"id": "object", "chat": "{}", "options": "[]"}]
    changes: dict[str, Any] = {
        "prompt": {"messages": "chat"},
        "task": {"type": "choice", "labels_column": "options"},
        "source": {"id": "id"},
    }
    job = job_of(rows, **changes)
    run_steps(job)
    assert outcomes(job) == expected
    listed = [row for row in table(job) if row["custom_id"] == "list"]
    job = job_of(as_json + broken, **changes)
    planned, _ = run_steps(job)
    assert outcomes(job) == expected | {"json": "BAD_MESSAGES", "object": "BAD_MESSAGES"}
    assert planned.pending == 0, "the same request, however its columns are written"
    assert [row for row in table(job) if row["custom_id"] == "list"] == listed


@pytest.mark.fault(17)
def test_large_tables_are_read_in_bounded_batches(job_of: JobMaker) -> None:
    started = time.monotonic()
    texts = [f"prompt {i % 500}" for i in range(20_000)]
    job = job_of(pa.table({"text": texts}))
    planned, published = run_steps(job)
    assert (planned.rows, planned.unique, published.results) == (20_000, 500, 20_000)
    assert time.monotonic() - started < 60
