"""`trunkline lm-eval`: the harness's own command, over tasks whose data are the few-shot examples of its wheel."""

import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from engine.errors import UserError
from flows.cli import app
from flows.harness import command
from flows.harness.command import run_lm_eval, with_model
from tests.flows.harness.conftest import prefixes

LINE = r"([^\n]*)"
EXAMPLE = re.compile(
    rf"Q: (.*?)\n\(A\) {LINE} \(B\) {LINE} \(C\) {LINE} \(D\) {LINE}\nA: (.*?The answer is \(([ABCD])\))", re.DOTALL
)
ASK = "{{ question }}\nA. {{ choices[0] }}\nB. {{ choices[1] }}\nC. {{ choices[2] }}\nD. {{ choices[3] }}\nAnswer:"
CHOICE = {"output_type": "multiple_choice", "doc_to_target": "answer", "num_fewshot": 2}
TASKS: dict[str, dict[str, Any]] = {
    "letters": CHOICE | {"doc_to_text": ASK, "doc_to_choice": ["A", "B", "C", "D"]},
    "answers": CHOICE | {"doc_to_text": "Question: {{ question }}\nAnswer:", "doc_to_choice": "{{ choices }}"},
    "reasons": {
        "output_type": "generate_until",
        "doc_to_text": "Q: {{ question }}\nA:",
        "doc_to_target": "{{ reason }}",
        "generation_kwargs": {"until": ["\n\n", "Q:"], "max_gen_toks": 8},
        "num_fewshot": 1,
        "metric_list": [{"metric": "exact_match"}],
    },
    "perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{ question }} {{ reason }}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder for `--include_path`."""
    rows = [
        {"question": question, "choices": choices, "reason": reason, "answer": "ABCD".index(letter)}
        for text in prefixes()
        for question, *choices, reason, letter in EXAMPLE.findall(text)
    ]
    assert len(rows) > 200
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in TASKS.items():
        data = {"data_files": {"test": str(tmp_path / "rows.jsonl")}, "cache_dir": str(tmp_path / "cache")}
        whole = task | {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": data,
            "test_split": "test",
            "fewshot_split": "test",
            "fewshot_config": {"sampler": "first_n"},
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(whole))
    return tmp_path


def figures(tasks: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[dict[str, Any], list[Any]]:
    """What the harness writes of each task, and the texts of `reasons`."""
    import lm_eval.tasks  # seconds, which the others that collect this file have no use for

    monkeypatch.setattr(sys, "argv", [])
    # Its own thousands of tasks take ten seconds to list.
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # the harness sets it for good
    output = tasks / f"results-{len(list(tasks.glob('results-*')))}"
    run_lm_eval([*arguments, "--include_path", str(tasks), "--output_path", str(output), "--log_samples"])
    [file], [texts] = output.rglob("results_*.json"), output.rglob("samples_reasons_*.jsonl")
    rows = [json.loads(line) for line in texts.read_text().splitlines()]
    return json.loads(file.read_text())["results"], [row["resps"] for row in rows]


def four_digits(results: dict[str, Any]) -> dict[tuple[str, str], str]:
    values = {(task, name): value for task, found in results.items() for name, value in found.items()}
    return {key: f"{value:.4g}" for key, value in values.items() if isinstance(value, int | float)}


def assert_equal_figures(tasks: Path, monkeypatch: pytest.MonkeyPatch, model: str, limit: int, *more: str) -> None:
    args = f"pretrained={model},dtype=float32,max_length=512"
    asked = ("--tasks", ",".join(TASKS), "--limit", str(limit), *more)
    found, texts = figures(tasks, monkeypatch, *asked, "--model_args", args + ",kv_cache_memory=256MiB")
    expected, their_texts = figures(tasks, monkeypatch, *asked, "--model_args", args, "--model", "hf")
    ours = four_digits(found)
    assert ours == four_digits(expected)
    assert texts == their_texts
    assert any(text for [[text]] in texts)
    assert {task for task, _ in ours} == set(TASKS)
    assert len(set(ours.values())) > 6


def test_whole_tasks_give_the_figures_of_the_harness_own_model(
    tasks: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_equal_figures(tasks, monkeypatch, str(tiny_model), 12)


def test_whole_tasks_as_chats(tasks: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ("--apply_chat_template", "--system_instruction", "Be brief.")
    assert_equal_figures(tasks, monkeypatch, str(tiny_model), 6, *more)


def test_answers_that_the_harness_keeps_are_not_asked_for_again(
    tasks: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--tasks", ",".join(TASKS), "--limit", "4", "--use_cache", str(tasks / "answers"))
    args = f"pretrained={tiny_model},kv_cache_memory=64MiB"
    first = figures(tasks, monkeypatch, *asked, "--model_args", args)

    def refuse(*_: object) -> None:
        raise AssertionError("was computed again")

    monkeypatch.setattr("flows.harness.planned_runs.PlannedRuns.run", refuse)
    assert figures(tasks, monkeypatch, *asked, "--model_args", args) == first


def test_a_table_that_is_not_there_is_a_line(tasks: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tasks / "rows.jsonl").unlink()
    args = f"pretrained={tiny_model},kv_cache_memory=64MiB"
    with pytest.raises(
        UserError, match=rf"^lm-eval: .*{tasks / 'rows.jsonl'}.*; paths start at the working directory$"
    ):
        figures(tasks, monkeypatch, "--tasks", "letters", "--model_args", args)


@pytest.mark.parametrize(
    ("given", "run"),
    [
        (["--tasks", "a"], ["run", "--model", "trunkline", "--tasks", "a"]),
        (["run", "--tasks", "a"], ["run", "--model", "trunkline", "--tasks", "a"]),
        (["--model", "hf", "-t", "a"], ["run", "--model", "trunkline", "--model", "hf", "-t", "a"]),
        (["run", "--config", "file.yaml"], ["run", "--config", "file.yaml"]),
        (["-C", "file.yaml"], ["-C", "file.yaml"]),
        (["ls", "tasks"], ["ls", "tasks"]),
        (["run", "--help"], ["run", "--help"]),
        (["--help"], ["--help"]),
        ([], []),
    ],
)
def test_the_model_is_ours_where_none_is_named(given: list[str], run: list[str]) -> None:
    """What stands last is what the harness takes."""
    assert with_model(given) == run


def test_all_options_are_the_harness_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(command, "run_lm_eval", seen.extend)
    arguments = ["--help", "--model_args", "pretrained=embedded", "max_length=5", "-b", "auto", "--log_samples"]
    assert CliRunner().invoke(app, ["lm-eval", *arguments]).exit_code == 0
    assert seen == arguments


def test_a_harness_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"^lm-eval is not installed; run: pip install 'trunkline\[lm_eval\]'$"):
        run_lm_eval(["--tasks", "a"])
