"""A job's structured output: what is taken, what is refused by which line, and what names a request."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from engine.sampling_params import StructuredOutputs
from tasks.job.job import ScoringJob
from tasks.job.job_file import load_job, parse_job
from tasks.job.sampling import Sampling

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"const": "größe"}}}


def content(structured: Any, **sampling: Any) -> dict[str, Any]:
    return {
        "name": "records",
        "source": {"parquet": "rows.parquet"},
        "prompt": {"column": "text"},
        "task": {"type": "generate"},
        "sampling": {"structured_outputs": structured} | sampling,
        "model": {"path": "embedded"},
        "output": "out",
    }


def asked(job: ScoringJob) -> StructuredOutputs | None:
    return job.sampling.params().structured_outputs


@pytest.mark.parametrize("written", [SCHEMA, json.dumps(SCHEMA), json.dumps(SCHEMA, indent=3)], ids=["a", "b", "c"])
def test_a_schema_is_a_mapping_or_its_json(written: Any) -> None:
    """However it is written, it is one text, whose keys keep their order."""
    found = asked(parse_job(content({"json": written}), "job.yaml"))
    assert found == StructuredOutputs(json=json.dumps(SCHEMA, ensure_ascii=False))


def test_a_schema_is_a_file_beside_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command runs; what names a request is what the file holds."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps(SCHEMA))
    (folder / "job.yaml").write_text(json.dumps(content({"json": "record.json"})))
    monkeypatch.chdir(tmp_path)
    job = load_job("jobs/job.yaml")
    assert asked(job) == StructuredOutputs(json=json.dumps(SCHEMA, ensure_ascii=False))
    again = parse_job(json.loads(job.model_dump_json(exclude_defaults=True)), "again")
    assert again.sampling == job.sampling


@pytest.mark.parametrize(
    ("file", "said"),
    [(None, r"record.json cannot be read \(No such file or directory\)"), ("{", "record.json is not JSON")],
)
def test_a_schemas_file_that_is_none_is_named(tmp_path: Path, file: str | None, said: str) -> None:
    if file is not None:
        (tmp_path / "record.json").write_text(file)
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(content({"json": "record.json"})))
    with pytest.raises(UserError, match=rf"job.yaml: sampling.structured_outputs.json: {said}"):
        load_job(path)


@pytest.mark.parametrize(
    ("structured", "found"),
    [
        ({"json_object": True}, StructuredOutputs(json_object=True)),
        ({"regex": "a+", "json_object": False, "choice": None}, StructuredOutputs(regex="a+")),
        ({"choice": ["yes", " no"]}, StructuredOutputs(choice=("yes", " no"))),
        ({"grammar": 'start: "x"'}, StructuredOutputs(grammar='start: "x"')),
    ],
)
def test_exactly_one_way_to_ask(structured: Any, found: StructuredOutputs) -> None:
    sampling = parse_job(content(structured), "job.yaml").sampling
    assert sampling.params().structured_outputs == found
    assert sampling.bad_grammar() is None
    assert Sampling.model_validate(sampling.model_dump(mode="json", exclude_defaults=True)) == sampling


@pytest.mark.parametrize(
    ("structured", "said"),
    [
        ({}, "give exactly one of json, json_object, regex, choice, grammar; none given"),
        ({"json": {}, "regex": "a"}, "give exactly one of .*; json and regex given"),
        ({"json": "no schema"}, "neither a JSON schema nor the path of a .json file beside the job"),
        ({"json": [1]}, "is no JSON schema: a schema is a mapping"),
        ({"choice": []}, "is empty; name the texts"),
        ({"choice": ["a", "a"]}, "names a text twice"),
        ({"jsn": {}}, "unknown key; did you mean json"),
    ],
)
def test_what_is_no_way_to_ask_is_refused(structured: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_job(content(structured), "job.yaml")


@pytest.mark.parametrize("key", ["stop", "until"])
def test_a_stop_would_cut_what_is_asked_for(key: str) -> None:
    with pytest.raises(UserError, match="stop would cut what structured_outputs asks for"):
        parse_job(content({"regex": "a"}, **{key: ["\n"]}), "job.yaml")


@pytest.mark.parametrize(
    ("structured", "said"),
    [
        ({"json": {"type": "strnig"}}, "structured_outputs.json: Invalid type: strnig"),
        ({"json": {"uniqueItems": True}}, 'structured_outputs.json: Unimplemented keys: ["uniqueItems"]'),
        ({"regex": "("}, "structured_outputs.regex: "),
        ({"grammar": "start: nope"}, "structured_outputs.grammar: "),
    ],
)
def test_what_is_no_grammar_is_named_behind_its_key(structured: Any, said: str) -> None:
    found = Sampling(structured_outputs=structured).bad_grammar()
    assert found is not None
    assert found.startswith(said)
    assert "\n" not in found


def test_a_request_is_named_by_it_only_where_it_is_used() -> None:
    assert "structured_outputs" not in Sampling().decisive()
    assert Sampling(structured_outputs={"regex": "a"}).decisive()["structured_outputs"] == {"regex": "a"}  # type: ignore[arg-type]
