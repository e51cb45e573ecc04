"""The command line: what is wrong is said in one line, before anything starts."""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pyarrow.csv import write_csv

from engine.errors import EngineDeadError, UserError
from engine.model.checkpoint import resolve_model
from engine.model.tokenizer import load_tokenizer
from flows import cli
from tasks.job.job_file import parse_job
from tasks.job.task_keys import TASK_KEYS
from tasks.storage.stop_request import RunStoppedError

HEAVY = ("torch", "transformers", "prefect", "duckdb", "pyarrow")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["trunkline", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def no_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test where a flow would have started."""
    import flows.run_job

    def fail(*_: object, **__: object) -> None:
        pytest.fail("Prefect was started")

    monkeypatch.setattr(flows.run_job, "run_job", fail)


def broken(job: dict[str, Any], keys: Sequence[str], value: object) -> dict[str, Any]:
    inner = job
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return job


@pytest.mark.usefixtures("no_flow")
@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (["task", "type"], "guess", "task.type"),
        (["sourc"], {}, "sourc: unknown key; did you mean source?"),
        (["source", "id"], "no_such_column", "no_such_column"),
        (["source", "parquet"], "/no/such/*.parquet", "/no/such/"),
        (["prompt"], {"template": "{{ no_such_column }}"}, "no_such_column"),
        (["prompt"], {"template": "{{ text "}, "template"),
        (["model", "path"], "/no/such/model", "model.path: no folder /no/such/model"),
    ],
)
def test_a_job_that_cannot_run_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    small_job: dict[str, Any],
    keys: list[str],
    value: object,
    said: str,
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(broken(small_job, keys, value)))
    assert run(monkeypatch, "score", str(path)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"trunkline: {path}: ")
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_flow")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["score", "nowhere.yaml"], "nowhere.yaml"),
        (["plan", "nowhere.yaml"], "nowhere.yaml"),
        (["batch", "nowhere.jsonl", "-o", "out.jsonl"], "nowhere.jsonl: no such file"),
        (["batch", "pyproject.toml", "-o", "no/where.jsonl"], "--output: no folder no"),
        (["batch", "pyproject.toml", "-o", "out.jsonl", "--model", "no/where"], "model.path: no folder no/where"),
        (["score", "job.yaml", "--set", "model"], "KEY=VALUE"),
        (["sql", "select 1", "--output", "nowhere"], "nowhere"),
        (["sql"], "give one SELECT, or --attach"),
        (["sql", "select 1", "--attach"], "give one SELECT, or --attach"),
        (["sql", "--attach", "--output", "nowhere"], "nowhere"),
        (["runs", "nowhere"], "nowhere: no run has used it"),
        (["stop", "nowhere"], "nowhere: no run has used it"),
    ],
)
def test_wrong_arguments_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.usefixtures("no_flow")
@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize(
    ("ids", "said"), [(["a", "b", "a"], "not unique: 2 rows have 'a'"), (["a", None, "b"], "NULL")]
)
def test_ids_are_checked_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    small_job: dict[str, Any],
    kind: str,
    ids: list[str | None],
    said: str,
) -> None:
    rows = tmp_path / f"ids.{kind}"
    table = pa.table({"row_id": ids, "text": ["x", "y", "z"]})
    (pq.write_table if kind == "parquet" else write_csv)(table, rows)
    small_job["source"] = {kind: str(rows), "id": "row_id"}
    path = tmp_path / "ids.yaml"
    path.write_text(yaml.safe_dump(small_job))
    assert run(monkeypatch, "score", str(path)) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_flow")
def test_every_fault_of_a_job_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, small_job: dict[str, Any]
) -> None:
    del small_job["name"]
    small_job["task"]["type"] = "guess"
    small_job["source"]["keeep"] = []
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(small_job))
    assert run(monkeypatch, "score", str(path)) == 2
    *most, last = map(repr, sorted(TASK_KEYS))
    types = f"{', '.join(most)} or {last}"
    assert capsys.readouterr().err.splitlines() == [
        f"trunkline: {path}: name: is required",
        f"trunkline: {path}: source.keeep: unknown key; did you mean keep?",
        f"trunkline: {path}: task.type: should be {types} (got 'guess')",
    ]


def test_policies_are_options_of_plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_job_file: Path
) -> None:
    def computed(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["trunkline", "plan", str(small_job_file), *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        [line] = [line for line in capsys.readouterr().out.splitlines() if "computed tokens" in line]
        return line

    shared, alone = computed(), computed("--sharing", "none")
    assert "0.0% saved" in alone
    assert "0.0% saved" not in shared
    assert computed("--sharing", "none", "--order", "fcfs", "--admission", "count") == alone
    assert computed("--set", "engine.sharing=none", "--sharing", "multi_level") == shared


@pytest.mark.usefixtures("no_flow")
@pytest.mark.parametrize("command", ["score", "plan"])
@pytest.mark.parametrize("option", ["sharing", "order", "admission"])
def test_an_unknown_policy_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    small_job_file: Path,
    command: str,
    option: str,
) -> None:
    assert run(monkeypatch, command, str(small_job_file), f"--{option}", "best") == 2
    printed = capsys.readouterr().err
    assert f"engine.{option}: " in printed
    assert printed.count("\n") == 1


def test_policies_and_trace_reach_a_run(monkeypatch: pytest.MonkeyPatch, small_job_file: Path, tmp_path: Path) -> None:
    import flows.run_job

    asked: list[tuple[Any, float, Any]] = []

    def note(job: Any, *, retry_failed: bool, full: bool, wait: float, trace: Path | None) -> None:
        asked.append((job.engine, wait, trace))

    monkeypatch.setattr(flows.run_job, "run_job", note)
    options = ["--sharing", "batchllm", "--order", "fcfs", "--admission", "count", "--trace", str(tmp_path / "t")]
    assert run(monkeypatch, "score", str(small_job_file), "--wait", "9", *options) == 0
    [(limits, wait, trace)] = asked
    assert (limits.sharing, limits.order, limits.admission) == ("batchllm", "fcfs", "count")
    assert (wait, trace) == (9, tmp_path / "t")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(5, "Input/output error", "/data/part"), 1, "OSError: [Errno 5] Input/output error: '/data/part'; the"),
        (
            EngineDeadError("the engine died: RuntimeError('no room')"),
            1,
            "the engine died: RuntimeError('no room'); the same",
        ),
        (MemoryError(), 1, "MemoryError: "),
        (UserError("source.id: is not there"), 2, "source.id: is not there"),
        (RunStoppedError("stopped by trunkline stop; the same"), 3, "stopped by trunkline stop; the same"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_fails_outside_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    small_job: dict[str, Any],
    error: Exception,
    code: int,
    said: str,
) -> None:
    import flows.run_job as module

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "start_server", fail)
    monkeypatch.setattr(module, "begun_process", lambda _: nullcontext())
    monkeypatch.setattr(module, "leave", sys.exit)
    monkeypatch.setattr(module, "end_orphans_with_me", lambda: None)
    monkeypatch.setattr("logging.raiseExceptions", True)
    with pytest.raises(SystemExit) as ended:
        module.run_job(parse_job(small_job, "test"), retry_failed=False)
    assert ended.value.code == code
    printed = capsys.readouterr().err
    assert printed.startswith(f"trunkline: {said}")
    assert printed.count("\n") == 1


@pytest.mark.parametrize("command", ["plan", "preview"])
def test_planning_and_previews_need_no_torch(small_job_file: Path, command: str) -> None:
    program = (
        "import sys\nfrom flows import cli\n"
        f"sys.argv = ['trunkline', {command!r}, {str(small_job_file)!r}]\n"
        "try: cli.main()\nexcept SystemExit as ended: assert not ended.code\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_preview_has_what_the_model_gets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_job_file: Path, tiny_model: Path
) -> None:
    options = ["--set", "prompt.chat=true", "--rows", "21", "--format", "json"]
    assert run(monkeypatch, "preview", str(small_job_file), *options) == 0
    previews = json.loads(capsys.readouterr().out)
    assert [one["custom_id"] for one in previews] == [f"row-{i}" for i in range(21)]
    assert previews[20] == {"custom_id": "row-20", "prompt": None, "tokens": None, "error_type": "EMPTY_PROMPT"}
    first = previews[0]
    assert first["prompt"].startswith("<|im_start|>system\n")
    assert first["prompt"].endswith(
        "<|im_start|>user\nThe parcel came late and the box was open. Case 0. Is this good or bad?<|im_end|>\n"
        "<|im_start|>assistant"
    )
    assert first["error_type"] is None
    assert first["tokens"] == len(load_tokenizer(resolve_model(str(tiny_model))).encode(first["prompt"]))
    assert not (small_job_file.parent / "out").exists()


def test_a_preview_for_a_person(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_job_file: Path
) -> None:
    assert run(monkeypatch, "preview", str(small_job_file), "--id", "row-20") == 0
    assert "EMPTY_PROMPT: the prompt is NULL" in capsys.readouterr().out
    assert run(monkeypatch, "preview", str(small_job_file), "--rows", "1") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("row-0, 20 tokens ")
    assert printed[1:] == [
        "The parcel came late and the box was open. Case 0. Is this good or bad?",
        "label ' good'",
        "label ' bad'",
    ]
    assert run(monkeypatch, "preview", str(small_job_file), "--id", "no") == 2
    assert capsys.readouterr().err == "trunkline: --id: no row has 'no'\n"


def test_help_and_version_need_nothing_heavy() -> None:
    program = (
        "import sys\nfrom flows import cli\n"
        "for argument in ('--help', 'version'):\n"
        "    sys.argv = ['trunkline', argument]\n"
        "    try: cli.main()\n"
        "    except SystemExit: pass\n"
        f"print(sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["score", "plan", "preview", "drift", "sql", "runs", "stop"])
def test_every_command_shows_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert run(monkeypatch, command, "--help") == 0
    assert "Example: trunkline" in capsys.readouterr().out


def test_what_a_run_sets_aside_is_told_on_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from rich.console import Console

    from flows.run_job import logs_told
    from tasks.storage.damage import DamagedError, tell

    problem = DamagedError(tmp_path / "manifests" / "a.json", "is not as it was written")
    with logs_told(Console(stderr=True)):
        tell(problem, "its shard will be scored again")
    tell(problem, "nobody looks")
    line = "trunkline: manifests/a.json is not as it was written: set aside as *.bad, its shard will be scored again"
    assert line in capsys.readouterr().err.splitlines()
