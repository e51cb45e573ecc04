"""Every command in the README's shell blocks is run by a test, here or where `ELSEWHERE` says."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prefect.settings import PREFECT_API_URL

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

# `.ci/run` runs these, and so whoever runs this test from there is inside the first.
IN_CI = {"make test"}
ELSEWHERE = {
    "PREFECT_SERVER_ANALYTICS_ENABLED=false prefect server start": "tests/flows/conftest.py",
    "prefect work-pool create trunkline --type process": "tests/flows/test_deployment.py",
    "prefect --no-prompt deploy --all": "tests/flows/test_deployment.py",
    "prefect worker start --pool trunkline": "tests/flows/test_deployment.py",
    "prefect deployment run trunkline-score/package-topics": "tests/flows/test_deployment.py",
    "make bench": "tests/engine/bench/test_run_set.py",
    "make bench-peers": "tests/engine/bench/test_run_set.py",
    "python -m engine.bench.ablation --rounds 3 --precision bfloat16": "tests/engine/bench/test_ablation.py",
    "prefect concurrency-limit create trunkline:cpu 2": "tests/flows/test_deployment.py",
}
# Run here as they stand, in a folder with the example's tables about three packages and jobs on the tiny model; the
# benchmark with small numbers.
GENERATE = "generate --groups 4 --degree 16 --prefix 2000 --distinct 200 --output 100"
CHOICE = "choice --groups 2 --degree 8 --prefix 1000 --distinct 80 --labels 4 --label-tokens 3"
WORKLOADS = (
    f"python -m engine.bench.workload {GENERATE} > generate.jsonl",
    f"python -m engine.bench.workload {CHOICE} > choice.jsonl",
)
TRACE = "python -m engine.bench.run --kv-gib 4 --model embedded generate.jsonl --trace trace.jsonl"
HERE = (
    "make demo",
    "make summaries",
    "trunkline preview examples/classify.yaml --rows 1",
    "trunkline plan examples/classify.yaml",
    "trunkline score examples/classify.yaml",
    "trunkline score examples/classify.yaml --output runs/other --set engine.kv_cache_memory=1GiB",
    "trunkline score examples/classify.yaml --retry-failed",
    "trunkline drift examples/classify.yaml --rows 200 --set model.quantization=int8",
    'trunkline sql "select label, count(*) as n from results group by label order by n desc"',
    'trunkline sql "select * from prefix_savings" --output runs/package-topics',
    'trunkline sql "select custom_id, label_probs from results" --format csv',
    'trunkline sql "from results" --to results.parquet',
    "trunkline sql --attach",
    "trunkline sql - < examples/accuracy.sql",
    *WORKLOADS,
    "python -m engine.bench.run --kv-gib 4 --model embedded generate.jsonl",
    "python -m engine.bench.run --kv-gib 4 --model embedded choice.jsonl",
    TRACE,
    "python -m engine.bench.plot_trace trace.jsonl trace.svg",
)
SMALL = {"degree": 2, "prefix": 24, "distinct": 8, "output": 4, "kv-gib": 0.1}


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_the_job_is_the_examples_own_file() -> None:
    job = (ROOT / "examples" / "classify.yaml").read_text()
    assert job in re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_python_is_run_elsewhere() -> None:
    [program] = re.findall(r"```python\n(from trunkline.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    last = program.splitlines()[-1].replace('"examples/classify.yaml"', "sys.argv[1]")
    assert last in (ROOT / "tests" / "flows" / "test_wheel.py").read_text().splitlines()


def test_every_command_is_known() -> None:
    assert set(commands()) == IN_CI | set(ELSEWHERE) | set(HERE)


@pytest.mark.parametrize("command", sorted(IN_CI))
def test_what_ci_runs_is_there(command: str) -> None:
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize(("command", "file"), ELSEWHERE.items())
def test_what_is_run_elsewhere_is_there(command: str, file: str) -> None:
    assert f'"{command}"' in (ROOT / file).read_text()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, prefect_server: None) -> Path:
    """What the commands read: the Makefile and the examples, with few packages and a model that takes no time.

    What others read has run once, so that every command finds what it is about, in any order.
    """
    folder = tmp_path_factory.mktemp("readme")
    (folder / "Makefile").write_text((ROOT / "Makefile").read_text())
    (folder / "examples").mkdir()
    for file in (ROOT / "examples").iterdir():
        if file.suffix == ".yaml":
            job = yaml.safe_load(file.read_text())
            job["model"]["path"] = str(tiny_model)
            (folder / "examples" / file.name).write_text(yaml.safe_dump(job))
        elif file.is_file():
            (folder / "examples" / file.name).write_text(file.read_text())
    # `make` finds the environment of this test set up already.
    (folder / ".venv").symlink_to(BIN.parent)
    for lock in ("requirements.lock", "requirements-weights.lock", "pyproject.toml"):
        (folder / lock).write_text("")
    subprocess.run(
        [sys.executable, "-m", "examples.packages", "--packages", "3"], cwd=folder, env=environment(folder), check=True
    )
    (folder / "tiny-model").symlink_to(tiny_model)
    for command in ("make demo", *WORKLOADS, TRACE):
        run(folder, command)
    return folder


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return kept | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(folder / "state"),
        # A server that runs already saves ten seconds a command; the ephemeral one has its own tests.
        "PREFECT_API_URL": PREFECT_API_URL.value(),
    }


def run(folder: Path, command: str) -> str:
    if command.startswith("make "):
        # Neither the environment nor the table is made anew.
        command += " --assume-old .venv/.installed --assume-old examples/data/questions.parquet"
    if command.startswith("python -m engine."):
        for option, value in SMALL.items():
            command = re.sub(rf"--{option} [0-9]+", f"--{option} {value}", command)
        command = command.replace("--model embedded", "--model tiny-model")
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("command", HERE)
def test_the_command_works_as_it_stands(project: Path, command: str) -> None:
    printed = run(project, command)
    assert printed.strip() or "--to" in command or ">" in command


def test_the_notebook_reads_the_results(project: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    [notebook] = [block for block in blocks if "duckdb.connect" in block]
    program = f"{notebook}\nassert topics.sql('select count(*) from results').fetchall()[0][0] > 10"
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=project, env=environment(project), capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert "label" in shown.stdout


def test_the_commands_of_contributing_are_targets() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    assert {line[1] for line in named} <= targets
