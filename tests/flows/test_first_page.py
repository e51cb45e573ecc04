"""The first page of the docs, followed to the letter: its files, its commands, and what it says comes of them."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from tasks.job.job_file import load_job
from tests.tasks.steps import ask, run_steps

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "README.md").read_text()
SCORE = "trunkline score examples/reviews.yaml"
LOOK = ("trunkline preview examples/reviews.yaml --rows 1", "trunkline plan examples/reviews.yaml")
READ = (
    "trunkline sql \"select custom_id, label, label_probs[' positive'] as p, text from results\" --output runs/reviews",
    'trunkline sql "select custom_id, error_type, error_message from errors" --output runs/reviews',
)
# The one on the page about errors, of any folder.
KINDS = (
    'trunkline sql "select error_type, count(*) as n, any_value(error_message) as example from errors group by all'
    ' order by n desc"'
)
OUTPUT = Path("runs/reviews")


@pytest.fixture(autouse=True)
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example lies in the working directory."""
    (tmp_path / "examples").mkdir()
    for name in ("reviews.csv", "reviews.yaml"):
        (tmp_path / "examples" / name).write_text((ROOT / "examples" / name).read_text())
    monkeypatch.chdir(tmp_path)


def called(command: str, *more: str) -> str:
    done = CliRunner().invoke(app, [*shlex.split(command)[1:], *more])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


@pytest.mark.parametrize(("language", "name"), [("csv", "reviews.csv"), ("yaml", "reviews.yaml")])
def test_the_page_shows_the_files(language: str, name: str) -> None:
    [shown] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert shown == (ROOT / "examples" / name).read_text()


def test_the_commands_do_what_the_page_says(tiny_model: Path) -> None:
    """On a model that takes no time, whose answers are any."""
    settings = {"model.path": str(tiny_model), "engine.kv_cache_memory": "64MiB"}
    for command in LOOK:
        assert called(command, *(f"--set={key}={value}" for key, value in settings.items()))
    job = load_job(Path(SCORE.split()[-1]), settings)
    _, published = run_steps(job)
    assert (published.results, published.errors) == (4, 1)
    for command in READ:
        assert called(command)
    assert called(KINDS, f"--output={OUTPUT}")
    [error] = ask(OUTPUT, "select custom_id, error_type, error_message from errors")
    assert re.search(r"^ 5 +TEMPLATE_ERROR +", PAGE, re.MULTILINE)
    assert all(text in PAGE for text in error.values())
    rows = Path("examples/reviews.csv").read_text()
    Path("examples/reviews.csv").write_text(rows.replace("5,\n", "5,Cheap.\n"))
    planned, published = run_steps(job)
    assert (published.results, published.errors) == (5, 0)
    assert planned.pending == 1


@pytest.mark.nightly
def test_the_models_answers_are_the_pages() -> None:
    run_steps(load_job(Path(SCORE.split()[-1]), {"engine.kv_cache_memory": "64MiB"}))
    rows = ask(OUTPUT, "select custom_id, label, label_probs[' positive'] as p, text from results")
    shown = re.findall(r"^ (\d) +( \w+) +(0\.\d+)   (.+)$", PAGE, re.MULTILINE)
    assert [[*row[:2], row[3]] for row in shown] == [[row["custom_id"], row["label"], row["text"]] for row in rows]
    assert [float(row[2]) for row in shown] == pytest.approx([row["p"] for row in rows], abs=0.002)
