"""The example jobs of task types, as the pages call them, on the tiny model and three packages, in this process."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from examples.packages import installed_packages, write_tables
from tasks.job.job_file import load_job
from tests.tasks.steps import ask, run_steps

ROOT = Path(__file__).parents[2]
COLUMNS = {
    "trunkline score examples/audience.yaml": ("label", "label_probs", "missing_mass"),
    "trunkline score examples/rerank.yaml": ("scores", "packages"),
    "trunkline score examples/loglikelihood.yaml": ("logprob", "is_greedy"),
    "trunkline score examples/rolling.yaml": ("logprob", "perplexity"),
    "trunkline score examples/perplexity.yaml": ("logprob", "perplexity", "prompt_logprobs"),
}


@pytest.mark.parametrize(("command", "columns"), COLUMNS.items())
def test_an_example_gives_its_columns(
    command: str, columns: tuple[str, ...], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, name = shlex.split(command)
    write_tables(tmp_path / "examples" / "data", installed_packages()[:3])
    monkeypatch.chdir(tmp_path)
    job = load_job(ROOT / name, {"model.path": str(tiny_model), "engine.kv_cache_memory": "64MiB"})
    _, published = run_steps(job)
    assert (published.results, published.errors) == (published.rows, 0)
    assert published.rows in (3, 5)
    rows: list[dict[str, Any]] = ask(job.output_folder, f"select {', '.join(columns)} from results")
    assert all(value is not None for row in rows for value in row.values())
    assert published.answers[0].rows
