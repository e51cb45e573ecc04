"""CSV and JSONL: delimiters, encodings, and columns that are joined over all lines and files."""

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from engine.errors import UserError
from tasks.check import check_job
from tasks.job.job import ScoringJob
from tasks.preview import preview_rows
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import ask, outcomes, run_steps, table

# -- CSV


def csv_job(job_of: JobMaker, tmp_path: Path, content: bytes, **source: Any) -> Any:
    (tmp_path / "rows.csv").write_bytes(content)
    return job_of(source={"csv": str(tmp_path / "rows.csv"), "id": "id"} | source)


@pytest.mark.fault(16)
def test_csv_with_all_that_goes_wrong_in_texts(job_of: JobMaker, tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfid,text,topic\r\n1,"a ""quoted"", two\nlines",x\r\n2,,y\r\n'
    content += b"3,bad \xff byte,\xfe\r\n4,nul \x00,z\r\n"
    content += b"5," + b"x" * 3_000_000 + b",long\r\n\r\n6,\xc3\xa9t\xc3\xa9,end\r\n"
    job = csv_job(job_of, tmp_path, content, keep=["topic"])
    run_steps(job)
    assert outcomes(job) == {
        "1": "ok",
        "2": "EMPTY_PROMPT",
        "3": "BAD_ENCODING",
        "4": "BAD_ENCODING",
        "5": "CONTEXT_OVERFLOW",
        "6": "ok",
    }
    assert [row["topic"] for row in table(job)] == ["x", "y", "\ufffd", "z", "long", "end"]


def test_an_empty_line_is_a_null_where_there_is_one_column(job_of: JobMaker, tmp_path: Path) -> None:
    """As DuckDB writes and reads it; among several columns it is no row."""
    duckdb.sql(f"copy (select unnest(['a', NULL, 'c', NULL]) as text) to '{tmp_path / 'rows.csv'}'")
    content = (tmp_path / "rows.csv").read_bytes()
    assert content == b"text\na\n\nc\n\n"
    job = csv_job(job_of, tmp_path, content, id=None)
    run_steps(job)
    assert outcomes(job) == {"0": "ok", "1": "EMPTY_PROMPT", "2": "ok", "3": "EMPTY_PROMPT"}


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_csv_with_another_delimiter(job_of: JobMaker, tmp_path: Path, delimiter: str) -> None:
    job = csv_job(job_of, tmp_path, f"id{delimiter}text\na{delimiter}one, two\n".encode())
    run_steps(job)
    assert outcomes(job) == {"a": "ok"}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "is empty; its first line must name the columns"),
        (b"id,text\n1,a\n2,b,c\n", "row 2 has 3 fields, its header 2"),
        (b"id,text,id\n1,a,2\n", "has column 'id' twice"),
        (b'id,text\n1,"a" b\n', "line 2: "),
        (b"\x28\xb5\x2f\xfd\x04", "compressed by zstd, which is not read; decompress it, or use gzip"),
        (gzip.compress(b"id,text\n", mtime=0), "compressed by gzip, which is not read; name it .gz"),
    ],
)
def test_csv_that_is_none(job_of: JobMaker, tmp_path: Path, content: bytes, line: str) -> None:
    with pytest.raises(UserError, match=line):
        run_steps(csv_job(job_of, tmp_path, content))


def test_csv_files_with_different_headers(job_of: JobMaker, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,a\n")
    (tmp_path / "b.csv").write_text("id,words\n1,a\n")
    with pytest.raises(UserError, match=r"the header of .*b.csv differs from that of a.csv"):
        check_job(job_of(source={"csv": str(tmp_path / "*.csv")}))


# -- JSONL


def jsonl_job(job_of: JobMaker, tmp_path: Path, lines: list[bytes | dict[str, Any]], **changes: Any) -> Any:
    encoded = [json.dumps(line).encode() if isinstance(line, dict) else line for line in lines]
    with gzip.open(tmp_path / "rows.jsonl.gz", "wb") as file:
        file.write(b"\n".join(encoded))
    source = {"jsonl": str(tmp_path / "rows.jsonl.gz"), "id": "id"} | changes.pop("source", {})
    return job_of(source=source, **changes)


@pytest.mark.fault(16)
def test_jsonl_with_all_that_goes_wrong_in_texts(job_of: JobMaker, tmp_path: Path) -> None:
    lines: list[bytes | dict[str, Any]] = [
        {"id": 1, "text": "one", "topic": {"a": [1]}},
        {"id": "2", "text": None},
        {"id": 3},
        b'{"id": 4, "text": "lone \\ud800"}',
        b'{"id": 5, "text": "raw \xff"}',
        {"id": 6, "text": "nul \x00", "topic": "plain"},
        b"",
        {"id": 7, "text": "x" * 20_000_000},
    ]
    job = jsonl_job(job_of, tmp_path, lines, source={"keep": ["topic"]})
    run_steps(job)
    assert list(outcomes(job).values()) == [
        "ok",
        "EMPTY_PROMPT",
        "EMPTY_PROMPT",
        "BAD_ENCODING",
        "BAD_ENCODING",
        "BAD_ENCODING",
        "CONTEXT_OVERFLOW",
    ]
    assert [row["topic"] for row in table(job)][::5] == ['{"a": [1]}', "plain"]


def test_jsonl_objects_reach_the_template_whole(job_of: JobMaker, tmp_path: Path, engine: FakeWorkers) -> None:
    job = jsonl_job(
        job_of,
        tmp_path,
        [{"id": 1, "doc": {"title": "T", "tags": ["a", "b"]}}],
        prompt={"template": "{{ doc.title }}: {{ doc.tags | join('+') }}"},
    )
    run_steps(job)
    [request] = engine.works[0].requests
    assert bytes(request.prompt_token_ids.astype("u1")) == b"T: a+b"


@pytest.mark.parametrize("line", [b"{", b"[1]", b'"text"', b"{'id': 1}"])
def test_jsonl_that_is_none(job_of: JobMaker, tmp_path: Path, line: bytes) -> None:
    job = jsonl_job(job_of, tmp_path, [{"id": 1, "text": "a"}, line])
    with pytest.raises(UserError, match=r"rows.jsonl.gz line 2 is not a JSON object"):
        run_steps(job)


def prompts_of(job: ScoringJob) -> list[str | None]:
    return [one.prompt for one in preview_rows(job, 100)]


@pytest.mark.parametrize(
    ("name", "content", "prompt", "prompts"),
    [
        (
            "t.csv",
            'id;"Why, as asked, in full";x\n1;"a, b; c";y\n2;Where;z\n',
            "Why, as asked, in full",
            ["a, b; c", "Where"],
        ),
        ("t.csv", "id\ttext (en, de, fr)\n1\tWhy\n2\tWhere\n", "text (en, de, fr)", ["Why", "Where"]),
        ("t.tsv", "id\ta;b\n", "a;b", []),
        ("t.csv", "text\nhello, you\nand me\nyes, you\n", "text", ["hello, you", "and me", "yes, you"]),
        ("t.csv", "prompt (en, de)\nhello\nyou\n", "prompt (en, de)", ["hello", "you"]),
        ("t.csv", 'id,text\n1,"a\n;b;\n"\n2,c;d\n', "text", ["a\n;b;\n", "c;d"]),
        ("t.csv", "sep=;\nid;text\n1;a,b\n", "text", ["a,b"]),
        ("t.csv", '"sep=|"\r\nid|text\r\n1|a,b\r\n', "text", ["a,b"]),
        ("t.csv", "\ufeffsep=\t\nid\ttext\n1\ta,b\n", "text", ["a,b"]),
        ("t.csv", 'id,price,text\n1,"2,5",a\n2,"3,5",b\n', "text", ["a", "b"]),
        ("t.csv", "id;price;text\n1;2,5;a\n2;3,5;b\n", "text", ["a", "b"]),
    ],
)
def test_the_delimiter_is_what_the_rows_agree_on(
    job_of: JobMaker, tmp_path: Path, name: str, content: str, prompt: str, prompts: list[str]
) -> None:
    (tmp_path / name).write_bytes(content.encode())
    job = job_of(source={"csv": str(tmp_path / name)}, prompt={"column": prompt}, task={"type": "generate"})
    assert prompts_of(job) == prompts


@pytest.mark.parametrize("delimiter", [":", "\\t", "\x1f"])
def test_a_delimiter_that_is_named(job_of: JobMaker, tmp_path: Path, delimiter: str) -> None:
    char = "\t" if delimiter == "\\t" else delimiter
    (tmp_path / "t.csv").write_text(f"id,a{char}te,xt\n1,2{char}a,b\n")
    job = job_of(
        source={"csv": str(tmp_path / "t.csv"), "delimiter": delimiter},
        prompt={"column": "te,xt"},
        task={"type": "generate"},
    )
    assert prompts_of(job) == ["a,b"]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ({"csv": "t.csv", "delimiter": ";;"}, "source.delimiter: is one character"),
        ({"csv": "t.csv", "delimiter": '"'}, "source.delimiter: is one character"),
        ({"csv": "t.csv", "encoding": "latin-99"}, "source.encoding: 'latin-99' is no text encoding"),
        ({"csv": "t.csv", "encoding": "base64"}, "source.encoding: 'base64' is no text encoding"),
        ({"parquet": "t.parquet", "encoding": "utf-8"}, "source: encoding belongs to csv and jsonl"),
        ({"jsonl": "t.jsonl", "delimiter": ";"}, "source: delimiter belongs to csv"),
    ],
)
def test_settings_that_are_none(job_of: JobMaker, source: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        job_of(source=source)


TEXT = "id,text\n1,né „quoted“ 你\n2,b\n"


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (TEXT.encode("utf-8-sig"), None),
        (TEXT.encode("utf-8-sig"), "utf-8"),
        (TEXT.encode("utf-16"), None),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), None),
        (codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"), "utf-16-le"),
        (TEXT.encode("utf-16-le"), "utf-16-le"),
        (TEXT.encode("utf-32"), None),
        (TEXT.encode("gb18030"), "gb18030"),
    ],
)
def test_encodings(job_of: JobMaker, tmp_path: Path, name: str, content: bytes, encoding: str | None) -> None:
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    source = {"csv": str(tmp_path / name), "id": "id"} | ({"encoding": encoding} if encoding else {})
    assert prompts_of(job_of(source=source, task={"type": "generate"})) == ["né „quoted“ 你", "b"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (TEXT.encode("utf-16-le"), "t.csv looks like UTF-16; set source.encoding: utf-16-le"),
        (TEXT.encode("utf-16-be"), "t.csv looks like UTF-16; set source.encoding: utf-16-be"),
        (
            "id,früh,text\n1,a,b\n".encode("cp1252"),
            "the header of .*t.csv is not UTF-8; set source.encoding, such as cp1252",
        ),
    ],
)
def test_an_encoding_that_must_be_named(job_of: JobMaker, tmp_path: Path, content: bytes, line: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=line):
        check_job(job_of(source={"csv": str(tmp_path / "t.csv")}))


@pytest.mark.fault(16)
def test_what_another_encoding_cannot_read_costs_its_own_row(job_of: JobMaker, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"id,text\n1,caf\xe9\n2,bad \x81\n3,c\n")
    job = job_of(source={"csv": str(tmp_path / "t.csv"), "id": "id", "encoding": "cp1252", "keep": ["text"]})
    run_steps(job)
    assert outcomes(job) == {"1": "ok", "2": "BAD_ENCODING", "3": "ok"}
    assert [row["text"] for row in table(job)] == ["café", "bad \ufffd", "c"]
    half = "\ud83d".encode("utf-16-le", "surrogatepass")
    (tmp_path / "u.csv").write_bytes("\ufeffid,text\n1,".encode("utf-16-le") + half + "x\n2,b\n".encode("utf-16-le"))
    job = job_of(source={"csv": str(tmp_path / "u.csv"), "id": "id"})
    run_steps(job)
    assert outcomes(job) == {"1": "BAD_ENCODING", "2": "ok"}


def test_a_gzip_file_that_is_none(job_of: JobMaker, tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(b"id,text\n1,a\n")
    with pytest.raises(UserError, match=r"source.csv: .*t.csv.gz cannot be read"):
        check_job(job_of(source={"csv": str(tmp_path / "t.csv.gz")}))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"id,text\n1,a\n" * 1000)[:-20])
    with pytest.raises(UserError, match=r"source.csv: .*t.csv.gz cannot be read"):
        run_steps(job_of(source={"csv": str(tmp_path / "t.csv.gz")}))


def write_parts(folder: Path, **parts: list[dict[str, Any]]) -> str:
    for name, rows in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "p*.jsonl")


@pytest.mark.parametrize(
    "parts",
    [
        {"p1": [{"id": i, "text": "a"} for i in range(10_010)] + [{"id": -1, "text": "b", "hint": "h"}]},
        {"p1": [{"id": 1, "text": "a"}], "p2": [{"id": -1, "text": "b", "hint": "h"}]},
        {"p1": [{"id": -1, "text": "b", "hint": "h"}], "p2": [{"id": 1, "text": "a"}]},
        {"p1": [], "p2": [{"id": 1, "text": "a", "hint": None}], "p3": [{"id": -1, "text": "b", "hint": "h"}]},
    ],
    ids=["after 10,000 lines", "in the second file", "in the first file", "after an empty file"],
)
def test_a_key_is_a_column_wherever_it_is_met(job_of: JobMaker, tmp_path: Path, parts: dict[str, Any]) -> None:
    job = job_of(source={"jsonl": write_parts(tmp_path, **parts), "id": "id", "keep": ["hint"]})
    check_job(job)
    run_steps(job)
    assert ask(job.output_folder, "select custom_id, hint from results where hint is not null") == [
        {"custom_id": "-1", "hint": "h"}
    ]
    [counted] = ask(job.output_folder, "select count(*) as n from results where hint is null")
    assert counted["n"] == sum(map(len, parts.values())) - 1


def test_a_key_that_is_null_everywhere_is_a_column(job_of: JobMaker, tmp_path: Path) -> None:
    parts = write_parts(tmp_path, p1=[{"text": "a", "hint": None}])
    job = job_of(source={"jsonl": parts, "keep": ["hint"]}, prompt={"template": "{{ hint or text }}"})
    assert prompts_of(job) == ["a"]


@pytest.mark.fault(16)
def test_texts_that_no_encoding_holds_are_kept_with_marks(job_of: JobMaker, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a", "\\ud800": 1, "hint": "\\ud800\\u00e9"}\n')
    job = job_of(source={"jsonl": str(tmp_path / "t.jsonl"), "keep": ["hint"]})
    run_steps(job)
    assert [row["hint"] for row in table(job)] == ["\ufffdé"]
    with pytest.raises(UserError, match="there are: text, hint"):
        check_job(job_of(source={"jsonl": str(tmp_path / "t.jsonl"), "id": "nowhere"}))


@pytest.mark.parametrize("parts", [{"p1": []}, {"p1": [], "p2": [{}]}])
def test_files_without_a_key(job_of: JobMaker, tmp_path: Path, parts: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"source.jsonl: .*p1.jsonl( and the other files)?: no line has a key"):
        check_job(job_of(source={"jsonl": write_parts(tmp_path, **parts)}))


def test_a_key_that_is_nowhere(job_of: JobMaker, tmp_path: Path) -> None:
    parts = write_parts(tmp_path, p1=[{"text": "a"}], p2=[{"text": "b", "hints": 1}])
    with pytest.raises(UserError, match=r"source.keep.hint: the source has no column 'hint'; did you mean 'hints'"):
        check_job(job_of(source={"jsonl": parts, "keep": ["hint"]}))


@pytest.mark.parametrize("value", [[1], {"a": 1}])
def test_an_id_that_is_a_list_or_an_object(job_of: JobMaker, tmp_path: Path, value: Any) -> None:
    parts = write_parts(tmp_path, p1=[{"id": 1, "text": "a"}, {"id": value, "text": "b"}])
    with pytest.raises(UserError, match=r"source.id: column 'id' is a list or an object in row 1; an id is one value"):
        run_steps(job_of(source={"jsonl": parts, "id": "id"}))


def test_empty_parts_are_skipped(job_of: JobMaker, tmp_path: Path) -> None:
    (tmp_path / "p1.csv").write_text("")
    (tmp_path / "p2.csv").write_text("id,text\n1,a\n")
    assert prompts_of(job_of(source={"csv": str(tmp_path / "p*.csv"), "id": "id"}, task={"type": "generate"})) == ["a"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_partitions_are_columns(job_of: JobMaker, tmp_path: Path, kind: str) -> None:
    for year in ("2025", "2026"):
        folder = tmp_path / f"year={year}"
        folder.mkdir()
        lines = f"text\nin {year}\n" if kind == "csv" else json.dumps({"text": f"in {year}"}) + "\n"
        (folder / f"t.{kind}").write_text(lines)
    job = job_of(
        source={kind: str(tmp_path / "year=*" / f"*.{kind}"), "keep": ["year"]},
        prompt={"template": "{{ year }} {{ text }}"},
    )
    assert prompts_of(job) == ["2025 in 2025", "2026 in 2026"]
    run_steps(job)
    assert [row["year"] for row in table(job)] == ["2025", "2026"]
