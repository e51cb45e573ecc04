"""The example's adapters as the page calls them, on the tiny model, in this process: each style has its own words."""

import shlex
from importlib import import_module
from pathlib import Path

import pytest

from tasks.job.job_file import load_job
from tests.tasks.steps import ask, run_steps

ROOT = Path(__file__).parents[1]


def test_each_style_answers(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = import_module(shlex.split("python -m examples.adapters")[-1])
    job_file = ROOT / shlex.split("trunkline score examples/adapters.yaml")[-1]
    monkeypatch.setattr(adapters, "DATA", tmp_path)
    adapters.main(str(tiny_model))
    changes = {
        "source.parquet": str(tmp_path / "styles.parquet"),
        "model.path": str(tiny_model),
        "model.adapters": {name: str(tmp_path / "adapters" / name) for name in adapters.ADAPTERS},
        "engine.kv_cache_memory": "16MiB",
        "engine.device": "cpu",
        "output": str(tmp_path / "out"),
    }
    job = load_job(job_file, changes)
    planned, _ = run_steps(job)
    assert (planned.rows, planned.unique, planned.summary.adapters) == (9, 9, 2)
    rows = ask(job.output_folder, "SELECT question, generated_text FROM results")
    texts = {row["generated_text"] for row in rows if row["question"] == adapters.QUESTIONS[0]}
    assert len(texts) == 3
