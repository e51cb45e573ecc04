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

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
README, QUERY, CONTRIBUTING = ROOT / "README.md", ROOT / "docs" / "query.md", ROOT / "CONTRIBUTING.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))

FIRST_PAGE = "tests/flows/test_first_page.py"
LABELS = "trunkline sql \"select custom_id, label, label_probs[' positive'] as p, text from results\""
KINDS = 'trunkline sql "select error_type, count(*) as n, any_value(error_message) as example from errors group by all'

BUCKETS = "tests/flows/test_bucket_commands.py"
IN_BUCKET = 'trunkline sql "select label, count(*) from results group by all"'

POOL = "prefect work-pool create trunkline --type"
# Run as they stand, on a small job, with a Prefect server that belongs to the test.
ELSEWHERE = {
    "PREFECT_SERVER_ANALYTICS_ENABLED=false prefect server start": "tests/flows/conftest.py",
    f"{POOL} process": "tests/flows/test_deployment.py",
    "prefect --no-prompt deploy --all": "tests/flows/test_deployment.py",
    "prefect worker start --pool trunkline": "tests/flows/test_deployment.py",
    "prefect deployment run trunkline-score/nightly": "tests/flows/test_deployment.py",
    "prefect deployment run trunkline-score/retry-failed": "tests/flows/test_nights.py",
    "prefect deployment run trunkline-score/ad-hoc --param job=examples/classify.yaml": "tests/flows/test_nights.py",
    "prefect work-pool update trunkline --concurrency-limit 1": "tests/flows/test_nights.py",
    "prefect work-pool get-default-base-job-template --type process": "tests/flows/test_nights.py",
    f"{POOL} docker --base-job-template flows/deploy/docker.json": "tests/flows/test_work_pools.py",
    f"{POOL} kubernetes --base-job-template flows/deploy/kubernetes.json": "tests/flows/test_work_pools.py",
    "prefect automation create --from-file automations.yaml": "tests/flows/test_deployment.py",
    "trunkline stop runs/package-topics": "tests/flows/test_show_runs.py",
    "trunkline score examples/classify.yaml --output s3://results/package-topics": BUCKETS,
    f"{IN_BUCKET} --output s3://results/package-topics": BUCKETS,
    "trunkline preview examples/reviews.yaml --rows 1": FIRST_PAGE,
    "trunkline plan examples/reviews.yaml": FIRST_PAGE,
    "trunkline score examples/reviews.yaml": FIRST_PAGE,
    f"{LABELS} --output runs/reviews": FIRST_PAGE,
    'trunkline sql "select custom_id, error_type, error_message from errors" --output runs/reviews': FIRST_PAGE,
    f'{KINDS} order by n desc"': FIRST_PAGE,
    (
        "OMP_NUM_THREADS=3 trunkline score examples/classify.yaml --output runs/parts"
        " --set engine.device=cpu --set engine.tensor_parallel=3"
    ): "tests/flows/test_ranks.py",
    "trunkline score examples/audience.yaml": "tests/tasks/test_examples.py",
    "trunkline score examples/rerank.yaml": "tests/tasks/test_examples.py",
    "trunkline score examples/loglikelihood.yaml": "tests/tasks/test_examples.py",
    "trunkline score examples/rolling.yaml": "tests/tasks/test_examples.py",
    "trunkline score examples/perplexity.yaml": "tests/tasks/test_examples.py",
    "python -m examples.adapters": "tests/test_example_adapters.py",
    "trunkline score examples/adapters.yaml": "tests/test_example_adapters.py",
}
# Not run by a test, but what each is made of; CONTRIBUTING says so.
IN_PART = {
    "make test": ".ci/run",
    "docker build --file flows/deploy/cpu.Dockerfile --tag trunkline:cpu .": "tests/flows/test_images.py",
    "docker build --file flows/deploy/cuda.Dockerfile --tag trunkline:cuda .": "tests/flows/test_images.py",
    "make bench-peers": "tests/test_peers.py",
    "NUMBA_CPU_NAME=haswell ATEN_CPU_CAPABILITY=avx2 make demo": "tests/engine/test_processors.py",
    "NUMBA_CPU_NAME=znver4 NUMBA_CPU_FEATURES=-avx512vnni make demo": "tests/kernels/cpu/test_objects.py",
}
# Run here as they stand, in a folder with the example's tables about three packages, jobs on the tiny model, and
# benchmarks on it.
GENERATE = "generate --groups 4 --degree 16 --prefix 2000 --distinct 200 --output 100"
CHOICE = "choice --groups 2 --degree 8 --prefix 1000 --distinct 80 --labels 4 --label-tokens 3"
WORKLOADS = (
    f"python -m engine.bench.workload {GENERATE} > generate.jsonl",
    f"python -m engine.bench.workload {CHOICE} > choice.jsonl",
)
BATCH = "trunkline batch examples/batch.jsonl --output out.jsonl --errors errors.jsonl"
BATCH_ERRORS = (
    "trunkline sql \"select line, batch_id, coalesce(fault ->> 'message', error_message) as why from errors\""
    " --output out.jsonl.run/results"
)
TWO_WORKERS = (
    "OMP_NUM_THREADS=2 trunkline score examples/classify.yaml --output runs/two"
    " --set engine.device=cpu --set engine.workers=2"
)
TRACE = "python -m engine.bench.run --kv-gib 4 --model embedded generate.jsonl --trace trace.jsonl"
LIVE = 'trunkline sql "select run_id, status, stage, rows_done, rows, row_errors, tokens_per_second, seconds_left'
LIVE += ' from runs"'
MIXED = 'trunkline sql "select task, custom_id, coalesce(generated_text, label, logprob::text) as answer from results"'
MIXED += " --output runs/mixed"
LM_EVAL = "trunkline lm-eval --model_args pretrained=embedded,max_length=2048"
LM_EVAL += " --tasks package_topics --include_path examples/lm_eval"
BESIDE = "trunkline sql \"from agreement('this', 'stored')\" --output runs/package-topics --with stored=runs/stored"
COLLECTED = "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 trunkline score examples/classify.yaml"
STORED = "trunkline score examples/classify.yaml --set store=runs/store --output runs/stored"
SIMULATE = "trunkline simulate examples/classify.yaml --devices 1000 --device h100"
DESCRIBED = f"{SIMULATE} --table groups=6250000,degree=16,prefix=80,distinct=20,output=8 --format json"
HERE = (
    "make install",
    "make demo",
    "make summaries",
    "trunkline score examples/embed.yaml",
    "trunkline sql - --output runs/package-embeddings < examples/similar.sql",
    "make bench",
    "trunkline preview examples/classify.yaml --rows 1",
    "trunkline plan examples/classify.yaml",
    "trunkline plan examples/classify.yaml --device h100",
    "trunkline plan examples/classify.yaml --format json",
    "trunkline simulate examples/classify.yaml --devices 8 --device h100 --price-per-hour 2.5",
    DESCRIBED,
    "make bench-plan",
    "trunkline score examples/classify.yaml",
    "trunkline score examples/classify.yaml --output runs/other --set engine.kv_cache_memory=1GiB",
    "trunkline score examples/classify.yaml --retry-failed",
    TWO_WORKERS,
    "trunkline score examples/classify.yaml --output runs/strict --set engine.determinism=strict",
    "trunkline score examples/classify.yaml --set checkpoint_seconds=2 --set max_error_rate=0.5",
    STORED,
    f"{STORED} --full",
    "trunkline store stats runs/store",
    "trunkline store verify runs/store",
    "trunkline store prune runs/store --older-than 30d --dry-run",
    "trunkline store prune runs/store --older-than 30d",
    "trunkline drift examples/classify.yaml --rows 200 --set model.quantization=int8",
    'trunkline sql "select label, count(*) as n from results group by label order by n desc"',
    'trunkline sql "select * from prefix_savings" --output runs/package-topics',
    'trunkline sql "select custom_id, label_probs from results" --format csv',
    'trunkline sql "select custom_id, label, min_margin from results where min_margin < 0.05 order by min_margin"',
    'trunkline sql "from results" --to results.parquet',
    'trunkline sql "from dictionary"',
    'trunkline sql "select custom_id, label from results" --to answers.xlsx',
    'trunkline sql "from results" --to answers.duckdb',
    BESIDE,
    "trunkline sql --attach",
    "trunkline report runs/package-topics",
    COLLECTED,
    "TRUNKLINE_LOG_FORMAT=json trunkline score examples/classify.yaml",
    "trunkline runs",
    "trunkline runs runs/package-topics --format json",
    LIVE,
    "trunkline sql - < examples/accuracy.sql",
    "trunkline score examples/extract.yaml",
    "trunkline sql - --output runs/package-records < examples/records.sql",
    "trunkline score examples/taglines.yaml",
    'trunkline sql "select custom_id, unnest(outputs, recursive := true) from results" --output runs/package-taglines',
    "trunkline score examples/mixed.yaml",
    MIXED,
    BATCH,
    f"{BATCH} --retry-failed",
    "trunkline batch examples/batch.jsonl --output other.jsonl --model embedded --set engine.kv_cache_memory=1GiB",
    'trunkline sql "select line, batch_id, finish_reason from results" --output out.jsonl.run/results',
    BATCH_ERRORS,
    *WORKLOADS,
    "python -m engine.bench.run --kv-gib 4 --model embedded generate.jsonl",
    "python -m engine.bench.run --kv-gib 4 --model embedded choice.jsonl",
    TRACE,
    LM_EVAL,
    "python -m engine.bench.plot_trace trace.jsonl trace.svg",
    "python -m engine.bench.ablation --rounds 3 --precision bfloat16",
)
# What others read has run before, once, so that every command finds what it is about, in any order.
FIRST = (
    "trunkline score examples/embed.yaml",
    "make demo",
    "trunkline score examples/extract.yaml",
    "trunkline score examples/taglines.yaml",
    "trunkline score examples/mixed.yaml",
    STORED,
    BATCH,
    *WORKLOADS,
    TRACE,
)
# Of one workload's file: the sets of workloads are run whole.
SMALL = {"degree": 2, "prefix": 24, "distinct": 8, "output": 4, "kv-gib": 0.1}


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
    """The environment of this test, all but its command."""
    (place / "bin").mkdir(parents=True)
    for file in (*BIN.parent.iterdir(), *BIN.iterdir()):
        link = place / file.relative_to(BIN.parent)
        if file not in (BIN, BIN / "trunkline"):
            link.symlink_to(file)


@pytest.fixture(scope="module")
def printed(folder: Path) -> Iterator[dict[str, str]]:
    """By command of `FIRST`."""
    with forked_commands(folder / ".venv" / "bin" / "trunkline", environment(folder)):
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
        [sys.executable, "-c", program], cwd=project, env=environment(project), capture_output=True, text=True
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
        [sys.executable, "-c", program], cwd=project, env=environment(project), capture_output=True, text=True
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
