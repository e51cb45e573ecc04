"""The command line: what is wrong is said in one line, before anything starts."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import cli
from flows.sql_format import Format, choose_format

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
    assert printed.err.startswith("trunkline: ")
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_flow")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["score", "nowhere.yaml"], "nowhere.yaml"),
        (["plan", "nowhere.yaml"], "nowhere.yaml"),
        (["score", "job.yaml", "--set", "model"], "KEY=VALUE"),
        (["sql", "select 1", "--output", "nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1


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

    asked: list[tuple[Any, Any]] = []

    def note(job: Any, *, retry_failed: bool, trace: Path | None) -> None:
        asked.append((job.engine, trace))

    monkeypatch.setattr(flows.run_job, "run_job", note)
    options = ["--sharing", "batchllm", "--order", "fcfs", "--admission", "count", "--trace", str(tmp_path / "t")]
    assert run(monkeypatch, "score", str(small_job_file), *options) == 0
    [(limits, trace)] = asked
    assert (limits.sharing, limits.order, limits.admission) == ("batchllm", "fcfs", "count")
    assert trace == tmp_path / "t"


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


@pytest.mark.parametrize("command", ["score", "plan", "drift", "sql"])
def test_every_command_shows_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert run(monkeypatch, command, "--help") == 0
    assert "Example: trunkline" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "to", "chosen"),
    [
        (None, None, Format.TABLE),
        (None, Path("a.csv"), Format.CSV),
        (None, Path("a.txt"), Format.TABLE),
        (Format.JSON, Path("a.csv"), Format.JSON),
        (None, Path("a.parquet"), Format.PARQUET),
    ],
)
def test_the_files_name_tells_the_format(asked: Format | None, to: Path | None, chosen: Format) -> None:
    assert choose_format(asked, to) is chosen
