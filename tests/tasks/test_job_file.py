from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from engine.errors import UserError
from tasks.job import ScoringJob
from tasks.job_file import load_job

GOOD: dict[str, Any] = {
    "name": "topics",
    "source": {"parquet": "data/*.parquet", "id": "row_id", "keep": ["topic"]},
    "prompt": {"template": "About {{ title }}", "chat": True},
    "task": {"type": "generate"},
    "sampling": {"max_tokens": 8, "stop": "\n"},
    "engine": {"kv_cache_memory": "1.5GiB"},
}


def load(tmp_path: Path, overrides: dict[str, object] | None = None, **changes: Any) -> ScoringJob:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(GOOD | changes))
    return load_job(path, overrides)


def test_a_good_job(tmp_path: Path) -> None:
    job = load(tmp_path)
    assert job.engine.kv_cache_memory == 3 * 2**29
    assert job.sampling.params().stop == ("\n",)
    assert job.source.keep == {"topic": "topic"}
    assert job.output_folder == Path.cwd() / "runs" / "topics"


def test_a_job_survives_the_flow_parameters(tmp_path: Path) -> None:
    job = load(tmp_path)
    assert ScoringJob.model_validate(job.model_dump(mode="json")) == job


def test_a_deployment_may_give_what_a_file_may(tmp_path: Path) -> None:
    given = GOOD | {"sampling": {"until": "\n", "do_sample": False, "max_gen_toks": 4}}
    load(tmp_path, sampling=given["sampling"])
    jsonschema.validate(given, ScoringJob.model_json_schema())
    jsonschema.validate(load(tmp_path).model_dump(mode="json"), ScoringJob.model_json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(GOOD | {"sampling": {"max_token": 4}}, ScoringJob.model_json_schema())


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    job = load(tmp_path, {"sampling.max_tokens": "32", "output": "elsewhere", "engine.sharing": "none"})
    assert (job.sampling.max_tokens, job.output, job.engine.sharing) == (32, "elsewhere", "none")


def test_an_override_that_is_no_yaml_is_text(tmp_path: Path) -> None:
    job = load(tmp_path, {"prompt.column": None, "prompt.template": "{{ text }}"})
    assert job.prompt.template == "{{ text }}"


def test_lm_eval_names_of_sampling(tmp_path: Path) -> None:
    sampling = load(tmp_path, sampling={"max_gen_toks": 5, "until": ["a", "b"], "do_sample": True}).sampling
    assert (sampling.max_tokens, sampling.stop, sampling.temperature) == (5, ("a", "b"), 1.0)
    assert load(tmp_path, sampling={"do_sample": False, "temperature": 0.7}).sampling.params().greedy


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"sourc": {}}, "sourc: unknown key; did you mean source?"),
        ({"engine": {"kv_cache_memry": 1}}, "engine.kv_cache_memry: unknown key; did you mean kv_cache_memory?"),
        ({"engine": {"kv_cache_memory": "2 lots"}}, "engine.kv_cache_memory: '2 lots' is not a size"),
        ({"engine": {"device": "tpu"}}, "engine.device: "),
        ({"name": "../up"}, "name: "),
        ({"name": 7}, "name: must be text, not 7; put it in quotes"),
        ({"source": {}}, "source: give exactly one of parquet, csv, jsonl, duckdb; none given"),
        ({"source": {"parquet": "a", "csv": "b"}}, "parquet and csv given"),
        ({"source": {"duckdb": {"database": "x"}}}, "source.duckdb.query: is required"),
        ({"source": {"parquet": "a", "keep": ["Label"]}}, "give it another name: {Label: my_Label}"),
        ({"source": {"parquet": "a", "keep": ["x", "x"]}}, "names a column twice"),
        ({"prompt": {"column": "a", "template": "b"}}, "prompt: give exactly one of column, template, messages"),
        ({"task": {"type": "guess"}}, "task.type: "),
        ({"task": {"type": "choice"}}, "task: give exactly one of labels, labels_column; none given"),
        ({"task": {"type": "generate", "labels": ["a"]}}, "labels belong to type: choice"),
        ({"task": {"type": "choice", "labels": [True, False]}}, "task.labels.0: must be text, not True; put it in"),
        ({"task": {"type": "choice", "labels": ["a", "a"]}}, "names a label twice"),
        ({"task": {"type": "choice", "labels": []}}, "name at least one label"),
        ({"task": {"type": "choice", "labels": [" yes"]}}, "sampling has no effect on type: choice"),
        ({"sampling": {"max_tokens": 1, "max_gen_toks": 2}}, "max_gen_toks and max_tokens say the same"),
        ({"sampling": {"max_tokens": 0}}, "sampling.max_tokens: "),
        ({"sampling": {"max_tokens": 3, "min_tokens": 4}}, "min_tokens 4 is more than max_tokens 3"),
        ({"sampling": {"temperature": float("nan")}}, "sampling.temperature: "),
        ({"shard_seconds": 0}, "shard_seconds: "),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as said:
        load(tmp_path, **changes)
    assert str(said.value).startswith(f"{tmp_path / 'job.yaml'}: ")
    assert line in str(said.value)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"name: [", "line 1 is not valid YAML"),
        (b"- a\n- b\n", "is not a job"),
        (b"", "is not a job"),
        (b"name: a\nname: b\n", "key 'name' twice"),
        (b"name: \xff", "is not UTF-8 text"),
    ],
)
def test_not_a_job_file(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=line):
        load_job(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.yaml: cannot be read \(No such file"):
        load_job(tmp_path / "absent.yaml")


def test_a_renamed_column_may_be_kept(tmp_path: Path) -> None:
    job = load(tmp_path, source={"parquet": "a", "keep": {"label": "truth"}})
    assert job.source.keep == {"label": "truth"}
