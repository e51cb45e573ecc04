"""Every command in the README's and docs' shell blocks is run: here, where `ELSEWHERE` says, or `IN_PART`."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prefect.settings import PREFECT_API_URL

from tasks.query import query
from tests.forked_commands import forked_commands
from tests.readme_commands import DESCRIBED, ELSEWHERE, FIRST, HERE, IN_PART, SMALL

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
README, QUERY, CONTRIBUTING = ROOT / "README.md", ROOT / "docs" / "query.md", ROOT / "CONTRIBUTING.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands() -> list[str]:
    shell = [block for page in PAGES for block in blocks(page, "sh")]
    return [line.strip() for block in shell for line in block.splitlines() if line.strip()]


def test_the_job_is_the_examples_own_file() -> None:
    job = (ROOT / "examples" / "classify.yaml").read_text()
    assert job in blocks(README, "yaml")


def test_the_python_is_run_elsewhere() -> None:
    [program] = blocks(README, "python")
    last = program.splitlines()[-1].replace('"examples/classify.yaml"', "sys.argv[1]")
    assert last in (ROOT / "tests" / "flows" / "test_wheel.py").read_text().splitlines()


def test_every_command_is_known() -> None:
    assert set(commands()) == set(IN_PART) | set(ELSEWHERE) | set(HERE)


@pytest.mark.parametrize(("command", "file"), ELSEWHERE.items())
def test_what_is_run_elsewhere_is_there(command: str, file: str) -> None:
    nodes = ast.walk(ast.parse((ROOT / file).read_text()))
    assert command in {node.value for node in nodes if isinstance(node, ast.Constant)}


@pytest.mark.parametrize(("command", "file"), IN_PART.items())
def test_contributing_says_what_is_run_in_part(command: str, file: str) -> None:
    assert re.search(rf"`{re.escape(command)}`[^`]*`{re.escape(file)}`", CONTRIBUTING.read_text())


def test_ci_runs_what_it_says() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, prefect_server: None) -> Path:
    """What the commands read: the Makefile and the examples, with few packages and a model that takes no time."""
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
    shutil.copytree(ROOT / "examples" / "lm_eval", folder / "examples" / "lm_eval")
    # `make` finds the environment of this test set up already.
    link_environment(folder / ".venv")
    for lock in ("requirements.lock", "requirements-weights.lock", "pyproject.toml"):
        (folder / lock).write_text("")
    subprocess.run(
        [sys.executable, "-m", "examples.packages", "--packages", "3"], cwd=folder, env=environment(folder), check=True
    )
    # Its positions are rotations, so that it takes the benchmarks' prompts too.
    shutil.copytree(tiny_model, folder / "tiny-model")
    config = json.loads((tiny_model / "config.json").read_text())
    (folder / "tiny-model" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    return folder


def link_environment(place: Path) -> None:
    """The environment of this test, all but what `forked_commands` writes."""
    (place / "bin").mkdir(parents=True)
    for file in (*BIN.parent.iterdir(), *BIN.iterdir()):
        link = place / file.relative_to(BIN.parent)
        if file not in (BIN, BIN / "trunkline", BIN / "python"):
            link.symlink_to(file)


@pytest.fixture(scope="module")
def printed(folder: Path) -> Iterator[dict[str, str]]:
    """By command of `FIRST`."""
    with forked_commands(folder / ".venv" / "bin", environment(folder)):
        yield {command: run(folder, command) for command in FIRST}


@pytest.fixture(scope="module")
def project(folder: Path, printed: dict[str, str]) -> Path:
    return folder


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return kept | {
        "PATH": f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(folder / "state"),
        # A server that runs already saves ten seconds a command; the ephemeral one has its own tests.
        "PREFECT_API_URL": PREFECT_API_URL.value(),
    }


def run(folder: Path, command: str) -> str:
    if command.startswith("make "):
        # Neither the environment nor the table is made anew.
        command += " --assume-old .venv/.installed --assume-old examples/data/questions.parquet"
    if command.startswith("make bench-plan"):
        command += " FLAGS='--rows 300'"
    elif command.startswith("make bench"):
        command += " FLAGS='--model tiny-model --precision float32 --kv-gib 0.1'"
    if command == DESCRIBED:
        command = command.replace("groups=6250000", "groups=6000")
    if "engine.bench.ablation" in command:
        command += " --model embedded --kv-gib 4"
    if command.startswith("trunkline batch"):
        command = command.replace(" --model embedded", "") + " --model tiny-model"
    if command.startswith("trunkline lm-eval"):
        command = command.replace("pretrained=embedded", "pretrained=tiny-model")
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
def test_the_command_works_as_it_stands(project: Path, printed: dict[str, str], command: str) -> None:
    said = printed[command] if command in printed else run(project, command)
    assert said.strip() or "--to" in command or ">" in command


def test_the_notebook_reads_the_results(project: Path) -> None:
    notebook, _ = blocks(QUERY, "python")
    program = f"{notebook}\nassert topics.sql('select count(*) from results').fetchall()[0][0] > 10"
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=project, env=environment(project), capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert "label" in shown.stdout


def test_the_functions_answer(project: Path) -> None:
    _, program = blocks(QUERY, "python")
    program = program.replace('"embedded"', '"tiny-model"')
    shown = subprocess.run(
        ["python", "-c", program], cwd=project, env=environment(project), capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert "topic" in shown.stdout


def test_arrays_are_compared_as_the_page_says(project: Path) -> None:
    [statement] = [block for block in blocks(ROOT / "docs" / "tasks.md", "sql") if "array_cosine_similarity" in block]
    with query(project / "runs" / "package-embeddings", statement.replace("[576]", "[64]")) as result:
        assert result.table().num_rows == 9


def test_the_harness_runs_from_python(project: Path) -> None:
    [program] = blocks(ROOT / "docs" / "lm-eval.md", "python")
    program = program.replace('"embedded"', '"tiny-model"')
    # The harness's own tasks take ten seconds to list.
    program = program.replace('"examples/lm_eval")', '"examples/lm_eval", include_defaults=False)')
    program += "\nprint('acc_norm', results['results']['package_topics']['acc_norm,none'])"
    shown = subprocess.run(
        ["python", "-c", program], cwd=project, env=environment(project), capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert "acc_norm 0." in shown.stdout


@pytest.mark.parametrize(
    "view", ["results", "runs", "shards", "prefix_savings", "throughput", "label_counts", "dictionary"]
)
def test_the_page_has_a_views_columns(project: Path, view: str) -> None:
    [said] = re.findall(rf"^\| `{view}` \| .* \| `([\w, ]+)`", QUERY.read_text(), re.MULTILINE)
    with query(project / "runs" / "package-topics", f"select * from {view} limit 0") as result:
        kept = ["package", "question", "truth"] if view == "results" else []
        assert said.split(", ") + kept == list(result.columns)


def test_the_commands_of_contributing_are_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [shlex.split(line, comments=True) for block in blocks(CONTRIBUTING, "sh") for line in block.splitlines()]
    assert {line[1] for line in named} <= targets
