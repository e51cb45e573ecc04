"""Every DuckDB connection of the project, attacked: what it may not do it says in an error, and nothing happens."""

import os
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from engine.errors import UserError
from tasks.query import query
from tasks.source.database_source import read_batches, read_schema
from tasks.storage import duck
from tests.tasks.conftest import JobMaker
from tests.tasks.steps import run_steps

Connection = AbstractContextManager[duckdb.DuckDBPyConnection]

# `{home}` is the folder that may be read, `{away}` one beside it.
READS = {
    "a text": "select * from read_text('{away}/secret.txt')",
    "a blob": "select * from read_blob('{away}/secret.txt')",
    "a CSV": "select * from read_csv('{away}/secret.txt')",
    "lines of JSON": "select * from read_json_auto('{away}/secret.txt')",
    "Parquet": "select * from read_parquet('{away}/secret.parquet')",
    "Parquet's footer": "select * from parquet_metadata('{away}/secret.parquet')",
    "a sniffed CSV": "select * from sniff_csv('{away}/secret.txt')",
    "a file by its name": "select * from '{away}/secret.parquet'",
    "a file by its URL": "select * from read_text('file://{away}/secret.txt')",
    "another database": "select * from read_duckdb('{away}/other.duckdb', table_name = 't')",
    "above": "select * from read_text('{home}/../away/secret.txt')",
    "a link": "select * from read_text('{home}/link.txt')",
    "a folder's link": "select * from read_text('{home}/linked/secret.txt')",
    "names": "select * from glob('{away}/*')",
    "names above": "select * from glob('{home}/../*/*')",
    "the environment": "select * from read_text('/proc/self/environ')",
    "a variable": "select getenv('HOME')",
    "the standard input": "select * from read_csv('/dev/stdin')",
    "secrets": "select * from duckdb_secrets()",
    "the network": "select * from read_parquet('https://example.com/x.parquet')",
    "a bucket": "select * from read_parquet('s3://bucket/x.parquet')",
    "a query in a text": "select * from query('from read_text(''{away}/secret.txt'')')",
    "a variable of Python's": "select * from of_python",
}
WRITES = {
    "copy": "copy (select 1) to '{away}/canary'",
    "copy into the folder's neighbour": "copy (select 1) to '{home}/../away/canary'",
    "export": "export database '{away}/canary'",
    "attach": "attach '{away}/canary' as x",
    "attach what is there": "attach '{away}/other.duckdb' as x",
    "install": "install httpfs",
    "load": "load httpfs",
    "load a file": "load '{away}/evil.duckdb_extension'",
    "more memory": "set memory_limit = '1TB'",
    "other folders": "set allowed_directories = ['/']",
    "external access": "set enable_external_access = true",
    "unlock": "reset lock_configuration",
    "extensions again": "set autoinstall_known_extensions = true",
    "another place to spill": "set temp_directory = '{away}/canary'",
    "a log": "call enable_logging(storage = 'file', storage_config = {{'path': '{away}/canary'}})",
    "a prepared copy": "prepare p as copy (select 1) to '{away}/canary'",
    "a secret": "create persistent secret s (type s3, key_id 'a', secret 'b')",
    "import": "import database '{away}'",
    "a profile": "set profiling_output = '{away}/canary'",
}
BOMBS = {
    "a long list": "select list(r) from range(1000000000) t(r)",
    "texts joined": "select string_agg(repeat('x', 1000000), '') from range(1000000)",
    "what spills": "select r, md5(r::varchar) as m from range(100000000) t(r) order by m",
}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    (away / "secret.txt").write_text("a secret\n")
    (home / "link.txt").symlink_to(away / "secret.txt")
    (home / "linked").symlink_to(away)
    with duckdb.connect(str(away / "other.duckdb")) as made:
        made.execute("create table t as select 'a secret' as a")
        made.execute(f"copy t to '{away}/secret.parquet' (format parquet)")
    shutil.copy(away / "secret.parquet", home / "own.parquet")
    shutil.copy(away / "other.duckdb", home / "own.duckdb")
    return {"home": home, "away": away}


CONNECTIONS: dict[str, Callable[[Path], Connection]] = {
    "of a run": duck.working_connection,
    "of views": lambda home: duck.view_connection(duck.FolderViews(home, ["create view v as select 1 as a"])),
    "of a database": lambda home: duck.database_connection(home / "own.duckdb"),
}


@pytest.mark.fault(24)
@pytest.mark.parametrize("connect", CONNECTIONS.values(), ids=CONNECTIONS)
def test_a_connection_refuses(folders: dict[str, Path], connect: Callable[[Path], Connection]) -> None:
    of_python = pa.table({"a": ["a secret"]})
    before = sorted(folders["away"].iterdir())
    done: list[object] = []
    with connect(folders["home"]) as connection:
        for attack in (READS | WRITES).values():
            with pytest.raises(duckdb.Error) as said:
                done += connection.execute(attack.format(**folders)).fetchall() or [attack]
            assert "a secret" not in str(said.value)
        assert connection.execute(f"select a from '{folders['home']}/own.parquet'").fetchall() == [("a secret",)]
    assert done == []  # what was read, or the statement that did something
    assert sorted(folders["away"].iterdir()) == before
    assert of_python.num_rows == 1


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_memory_and_what_is_spilled_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bomb: str) -> None:
    monkeypatch.setattr(duck, "WORKING_MEMORY_LIMIT", "200MB")
    monkeypatch.setattr(duck, "SPILL_LIMIT", "50MB")
    with duck.working_connection(tmp_path) as connection, pytest.raises(duckdb.Error, match="Out of Memory"):
        for _ in connection.sql(bomb).to_arrow_reader(4096):
            pass
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 60_000_000


@pytest.mark.fault(24)
def test_a_hostile_database_is_read_and_reads_nothing(folders: dict[str, Path]) -> None:
    """Its views and macros are somebody's SQL, which runs when the job's query names them."""
    database = folders["home"] / "hostile.duckdb"
    with duckdb.connect(str(database)) as made:
        made.execute(f"create view away as select * from read_text('{folders['away']}/secret.txt')")
        made.execute("create macro any_file(name) as table select * from read_text(name)")
        made.execute("create view own as select 'mine' as content")
        made.execute("create macro count(x) as 'shadowed'")
    assert [batch.to_pylist() for batch in read_batches(database, "from own", ["content"])] == [[{"content": "mine"}]]
    for hostile in ("from away", f"from any_file('{folders['away']}/secret.txt')", "copy own to '/tmp/canary'"):
        with pytest.raises(UserError) as said:
            read_schema(database, hostile)
        assert str(said.value).startswith("source.duckdb.query: ")
        assert "a secret" not in str(said.value)
        assert "\n" not in str(said.value)


@pytest.mark.fault(25)
def test_a_value_that_a_query_fails_over_is_told_as_length_and_hash(tmp_path: Path) -> None:
    """DuckDB quotes it, and the line is Prefect's word of the run's end too."""
    with duckdb.connect(str(tmp_path / "a.duckdb")) as made:
        made.execute("create table t as select $value as text", {"value": 'it\'s a secret, "here"'})
    with pytest.raises(UserError, match=r"\(21 characters, sha256 [0-9a-f]{12}\)") as said:
        list(read_batches(tmp_path / "a.duckdb", "select cast(text as int) as n from t", ["n"]))
    assert "secret" not in str(said.value)


def test_another_programs_database_fetches_no_extension(tmp_path: Path) -> None:
    """DuckDB would download `sqlite_scanner` for a file that begins so."""
    (tmp_path / "a.db").write_bytes(b"SQLite format 3\0" + bytes(4096))
    with pytest.raises(UserError, match=r"^source\.duckdb\.database: .* cannot be opened \(") as said:
        read_schema(tmp_path / "a.db", "select 1")
    assert "http" not in str(said.value)


@pytest.mark.fault(24)
@pytest.mark.usefixtures("all_files")
def test_a_hostile_output_folder(job_of: JobMaker, folders: dict[str, Path]) -> None:
    """`trunkline sql` never opens its database; its own views read what runs committed, through no link."""
    job = job_of([{"text": "one"}])
    run_steps(job)
    out = job.output_folder
    (out / "results.duckdb").unlink()
    with duckdb.connect(str(out / "results.duckdb")) as made:
        made.execute(f"create view results as select * from read_text('{folders['away']}/secret.txt')")
        made.execute("create view evil as select 1")
    with query(out, "select count(*) as n from results") as result:
        assert result.table().to_pylist() == [{"n": 1}]
    with pytest.raises(UserError, match="evil"), query(out, "select * from evil"):
        pass
    [part] = (out / "parts").iterdir()
    whole = part.read_bytes()
    part.unlink()
    part.symlink_to(folders["away"] / "secret.parquet")
    with query(out, "select count(*) as n from results") as result:
        assert result.table().to_pylist() == [{"n": 0}]
        assert f"parts/{part.name} is no file" in str(result.warning)
    part.unlink()
    part.write_bytes(whole)
    for name in ("parts", "manifests", "plan"):
        (out / name).rename(out / "moved")
        (out / name).symlink_to(out / "moved")
        with pytest.raises(UserError, match=rf"{name} is a link"):
            query(out, "select 1")
        (out / name).unlink()
        (out / "moved").rename(out / name)


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("select " + "(" * 300, "syntax error"),
        ("select " + "(" * 2000 + "1" + ")" * 2000, "depth limit"),
        ("select 1" + " + 1" * 20_000, "depth limit"),
        (f"select '{'x' * 2_000_000}'", "2,000,009 characters are more than a query may have, 1,000,000"),
        ("select 'ab\0cd'; select 2", "give one SELECT statement"),
    ],
)
def test_a_query_that_is_too_long_or_deep_is_one_line(tmp_path: Path, sql: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        query(tmp_path, sql)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_ctrl_c_ends_a_query(job_of: JobMaker) -> None:
    """More than once: which of DuckDB's threads computes is chance, and a query waits for rows in two places."""
    job = job_of([{"text": "one"}])
    run_steps(job)
    before_its_rows = "select count(*) from range(1000000000000000)"
    between_its_rows = "select range from range(1000000000000000) where range < 100000 or range < 0"
    for sql in (before_its_rows, between_its_rows) * 4:
        stop = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        stop.start()
        with pytest.raises(KeyboardInterrupt), query(job.output_folder, sql) as result:
            for _ in result.batches():
                pass
        stop.join()


def test_ctrl_c_ends_the_query_of_a_source(tmp_path: Path) -> None:
    database = tmp_path / "own.duckdb"
    duckdb.connect(str(database)).close()
    before_its_rows = "select count(*) as r from range(1000000000000000)"
    between_its_rows = "select range as r from range(1000000000000000) where range < 100000 or range < 0"
    for sql in (before_its_rows, between_its_rows) * 2:
        stop = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        stop.start()
        with pytest.raises(KeyboardInterrupt):
            for _ in read_batches(database, sql, ["r"]):
                pass
        stop.join()


def test_ctrl_c_ends_a_join_of_a_run(tmp_path: Path) -> None:
    long = "select count(*) from range(1000000000000000)"
    for _ in range(3):
        stop = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        stop.start()
        with pytest.raises(KeyboardInterrupt), duck.working_connection(tmp_path) as connection:
            connection.execute(long)
        stop.join()
