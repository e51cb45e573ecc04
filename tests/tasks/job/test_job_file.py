import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from engine.errors import UserError
from tasks.job.job import ScoringJob
from tasks.job.job_file import load_job
from tasks.job.job_part import Part
from tasks.job.sampling import Sampling
from tests.tasks.job_table import PAGE, job_table, written

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


@pytest.mark.parametrize(
    "task",
    [
        *({"type": name} for name in ("embed", "generate", "loglikelihood_rolling", "perplexity", "score")),
        {"type": "choice", "labels": ["a", "b"]},
        {"type": "classify", "labels": ["a", "b"], "variants": {"a": "x", "b": ["y", "z"]}},
        {"type": "loglikelihood", "continuation_column": "text"},
    ],
    ids=lambda task: task["type"],
)
def test_a_job_survives_the_flow_parameters(task: dict[str, Any], tmp_path: Path) -> None:
    job = load(tmp_path, task=task, sampling=GOOD["sampling"] if task["type"] == "generate" else {})
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
        (
            {"engine": {"tensor_parallel": 2}, "model": {"adapter": "a"}},
            "engine.tensor_parallel: 2 does not go with model.adapter; take 1, or remove that",
        ),
        ({"engine": {"tensor_parallel": 0}}, "engine.tensor_parallel: "),
        (
            {"engine": {"device": "cuda:1"}, "runner": "ray"},
            "engine.device: cuda:1 does not go with runner: ray, whose cluster deals the GPUs; take cuda, and ",
        ),
        ({"name": "../up"}, "name: "),
        ({"model": {"path": "a" * 100_000}}, "model.path: is 100,000 bytes long; a path may have 4,095"),
        ({"model": {"path": "a" * 300}}, "model.path: holds a name of more than 255 bytes"),
        ({"model": {"path": "a\0b"}}, "model.path: holds a NUL character"),
        ({"model": {"path": "~nobody-here/x"}}, "names a user whom this machine does not know"),
        ({"output": "a/" * 3000}, "output: is 5,999 bytes long"),
        ({"source": {"csv": "\U0001f4a9" * 64}}, "source.csv: holds a name of more than 255 bytes"),
        ({"source": {"duckdb": {"database": "a" * 300, "query": "b"}}}, "source.duckdb.database: holds a name"),
        ({"name": 7}, "name: must be text, not 7; put it in quotes"),
        ({"source": {"parquet": ["a", "b"]}}, "source.parquet: must be text, not ['a', 'b']; name one"),
        ({"name": "my job"}, "name: must be letters of a to z, digits, dots, dashes and underscores, and begin with a"),
        ({"engine": {"device": "mps"}}, "engine.device: must be auto, cpu, cuda or cuda:N, not 'mps'"),
        ({"source": {}}, "source: give exactly one of parquet, csv, jsonl, duckdb; none given"),
        ({"source": {"parquet": "a", "csv": "b"}}, "parquet and csv given"),
        ({"source": {"duckdb": {"database": "x"}}}, "source.duckdb.query: is required"),
        ({"source": {"parquet": "a", "keep": ["Label"]}}, "give it another name: {Label: my_Label}"),
        ({"source": {"parquet": "a", "keep": ["x", "x"]}}, "names a column twice"),
        ({"prompt": {"column": "a", "template": "b"}}, "prompt: give exactly one of column, template, messages"),
        ({"task": {"type": "guess"}}, "task.type: "),
        ({"task": {"type": "choice"}, "sampling": {}}, "task: give exactly one of labels, labels_column; none given"),
        ({"task": {"type": "generate", "labels": ["a"]}}, "labels belong to type: choice"),
        (
            {"task": {"type": "choice", "labels": [True, "b"]}, "sampling": {}},
            "task.labels.0: must be text, not True; put",
        ),
        ({"task": {"type": "choice", "labels": ["a", "a"]}, "sampling": {}}, "names 'a' twice; name each label once"),
        ({"task": {"type": "choice", "labels": []}, "sampling": {}}, "name at least two labels"),
        ({"task": {"type": "choice", "labels": [" yes", " no"]}}, "sampling has no effect on type: choice"),
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


def read(tmp_path: Path, text: str, overrides: dict[str, object] | None = None) -> ScoringJob:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return load_job(path, overrides)


CHOICE = """
name: topics
source: {parquet: a}
prompt: {column: text, chat: true}
task: {type: choice, labels: [yes, no, on, off, y, 12:30, 2026-11-27, 1_000, =]}
engine: {kv_cache_memory: 0x4000000, max_model_len: 0o17, block_size: 010}
shard_seconds: 1e2
output: ~
"""


def test_plain_words_mean_what_yaml_1_2_says(tmp_path: Path) -> None:
    job = read(tmp_path, CHOICE)
    assert job.task.labels == ("yes", "no", "on", "off", "y", "12:30", "2026-11-27", "1_000", "=")
    assert (job.engine.kv_cache_memory, job.engine.max_model_len, job.engine.block_size) == (2**26, 15, 10)
    assert (job.shard_seconds, job.output, job.prompt.chat) == (100.0, None, True)


def test_an_override_means_the_same_as_the_file(tmp_path: Path) -> None:
    job = read(tmp_path, CHOICE, {"task.labels": "[no, yes]", "prompt.chat": "false"})
    assert (job.task.labels, job.prompt.chat) == (("no", "yes"), False)


@pytest.mark.parametrize("word", ["true", "True", "TRUE", "false", "False", "FALSE"])
def test_booleans_are_booleans(tmp_path: Path, word: str) -> None:
    assert read(tmp_path, CHOICE.replace("true", word)).prompt.chat is (word.lower() == "true")
    with pytest.raises(UserError, match=r"task\.labels\.0: must be text, not (True|False); put it in quotes"):
        read(tmp_path, CHOICE.replace("[yes", f"[{word}"))


def test_all_faults_are_listed_those_between_keys_too(tmp_path: Path) -> None:
    changes = {
        "name": "../up",
        "source": {"parquet": "a", "csv": "b", "id": 7},
        "prompt": {"colum": "text"},
        "task": {"type": "choice", "labels": [True, " a"], "labels_column": "x"},
        "sampling": {"temperature": "hot", "min_tokens": 9, "max_gen_toks": 3},
        "engine": {"max_model_len": "many", "sharing": []},
        "colour": "red",
    }
    with pytest.raises(UserError) as said:
        load(tmp_path, **changes)
    name = f"{tmp_path / 'job.yaml'}: "
    lines = str(said.value).splitlines()
    assert all(line.startswith(name) for line in lines)
    keys = [line.removeprefix(name).partition(": ")[0] for line in lines]
    assert keys == [
        *("name", "source.id", "source", "prompt.colum", "prompt", "task.labels.0", "task"),
        *("sampling.temperature", "sampling", "engine.max_model_len", "engine.sharing", "colour", "job"),
    ]


@pytest.mark.parametrize("value", [None, True, 7, 0.5, "text", ["a"], {"a": 1}, {}], ids=repr)
def test_no_fault_names_a_class_of_ours(tmp_path: Path, value: object) -> None:
    """Every key in turn, a group in a group too."""
    classes = {part.__name__ for part in Part.__subclasses__()} - {"Task", "Model", "Source", "Prompt", "Sampling"}
    keys = [line.split("`")[1] for line in job_table().splitlines()[2:]]
    heard = 0
    for key in keys:
        try:
            load(tmp_path, {key: value})
        except UserError as problem:
            heard += 1
            said = str(problem)
            assert not any(name in said for name in (*classes, "instance of", "dictionary", "tuple")), said
    assert heard > 5


def test_a_group_says_its_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source\.duckdb: must hold keys \(database, query\), not 'a\.duckdb'"):
        load(tmp_path, source={"duckdb": "a.duckdb"})


def test_the_page_has_the_table_of_all_keys() -> None:
    """`python -m tests.tasks.job_table` rewrites it."""
    assert written(PAGE.read_text()) == job_table()


def test_the_page_s_own_example_is_a_job(tmp_path: Path) -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    job = read(tmp_path, f"name: tickets\ntask: {{type: generate}}\n{example}")
    assert job.source.kind == "duckdb"
    assert (job.source.id, job.prompt.column) == ("ticket", "body")


def test_the_names_of_an_answer_stay_when_keys_are_added() -> None:
    """A key that came later counts only where it is used."""
    older = {"temperature", "top_p", "top_k", "seed", "stop", "stop_token_ids", "ignore_eos", "min_tokens", "logprobs"}
    assert set(Sampling().decisive()) == older
    given = Sampling.model_validate({"logit_bias": {"42": -100}, "min_p": 0.1, "bad_words": "no"}).decisive()
    assert set(given) == older | {"logit_bias", "min_p", "bad_words"}
    assert Sampling.model_validate({"logit_bias": {"42": -100}}).params().logit_bias == ((42, -100.0),)
