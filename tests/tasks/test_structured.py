"""Structured output end to end: a job with a schema, rows with their own, errors by name, and SQL over it."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from engine.errors import UserError
from tasks.job.job import ScoringJob
from tests.tasks.steps import ask, model_job, run_steps, table

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"kind": {"enum": ["tool", "library"]}, "size": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["kind", "size"],
    "additionalProperties": False,
}
# What each row's own sampling says over the job's.
ROWS: dict[str, Any] = {
    "plain": None,
    "again": {"temperature": 0.0},
    "cut": {"max_tokens": 3},
    "regex": {"structured_outputs": {"regex": "[0-9]{3}-[0-9]{2}"}},
    "choice": {"structured_outputs": {"choice": ["yes", "no"]}},
    "number": {"structured_outputs": {"json": {"type": "integer", "minimum": 10, "maximum": 19}}},
    "bad": {"structured_outputs": {"json": {"type": "strnig"}}},
    "not implemented": {"structured_outputs": {"json": {"not": {"type": "null"}}}},
    "endless": {"structured_outputs": {"json": {"$ref": "#"}}},
    "two": {"structured_outputs": {"regex": "a", "choice": ["a"]}},
    "stop": {"stop": ["x"]},
}


def job(folder: Path, model: Path, structured: Any) -> ScoringJob:
    rows = [
        {"id": name, "text": f"A record about {name}", "own": json.dumps(own) if own is not None else None}
        for name, own in ROWS.items()
    ]
    sampling = {"max_tokens": 40, "structured_outputs": structured, "column": "own"}
    return model_job(folder, model, rows, task={"type": "generate"}, sampling=sampling)


def test_a_table_of_records(tmp_path: Path, tiny_model: Path) -> None:
    made = job(tmp_path, tiny_model, {"json": SCHEMA})
    run_steps(made)
    found = {row["custom_id"]: row for row in table(made)}
    assert {name: row["error_type"] or row["finish_reason"] for name, row in found.items()} == {
        "plain": "stop",
        "again": "stop",
        "cut": "length",
        "regex": "stop",
        "choice": "stop",
        "number": "stop",
        "bad": "BAD_GRAMMAR",
        "not implemented": "BAD_GRAMMAR",
        "endless": "BAD_GRAMMAR",
        "two": "BAD_SAMPLING",
        "stop": "BAD_SAMPLING",
    }
    assert found["bad"]["error_message"] == "sampling.structured_outputs.json: Invalid type: strnig"
    assert found["endless"]["error_message"] == "no text satisfies it"
    assert found["choice"]["generated_text"] in ("yes", "no")
    assert found["choice"]["parsed"] is None
    for name in ("plain", "again"):
        Draft202012Validator(SCHEMA).validate(json.loads(found[name]["parsed"]))
    assert found["cut"]["parsed"] is None
    # json_extract just works, over rows that are cut and texts that are no JSON too.
    extracted = """
    SELECT custom_id, json_extract_string(parsed, '$.kind') AS kind, CAST(parsed -> 'size' AS INTEGER) AS size
    FROM results WHERE json_type(parsed) = 'OBJECT' ORDER BY custom_id
    """
    rows = ask(made.output_folder, extracted)
    assert [row["custom_id"] for row in rows] == ["again", "plain"]
    assert all(row["kind"] in ("tool", "library") and 1 <= row["size"] <= 99 for row in rows)
    (number,) = ask(made.output_folder, "SELECT CAST(parsed AS INTEGER) AS n FROM results WHERE custom_id = 'number'")
    assert 10 <= number["n"] <= 19


@pytest.mark.parametrize(
    ("structured", "said"),
    [
        ({"json": {"type": "strnig"}}, "sampling.structured_outputs.json: Invalid type: strnig"),
        ({"json": {"$ref": "#"}}, "sampling.structured_outputs: no text satisfies it"),
        ({"grammar": "start: nope"}, "sampling.structured_outputs.grammar: "),
    ],
)
def test_a_jobs_own_grammar_is_refused_before_it_runs(
    tmp_path: Path, tiny_model: Path, structured: Any, said: str
) -> None:
    with pytest.raises(UserError) as refused:
        run_steps(job(tmp_path, tiny_model, structured))
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)
