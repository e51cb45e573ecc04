"""The example's adapters, on the tiny model: every style answers, and each in words of its own."""

from pathlib import Path

import pytest

import examples.adapters
from tasks.job.job_file import load_job
from tests.tasks.steps import ask, run_steps

ROOT = Path(__file__).parents[1]


def test_each_style_answers(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples.adapters, "DATA", tmp_path)
    examples.adapters.main(str(tiny_model))
    changes = {
        "source.parquet": str(tmp_path / "styles.parquet"),
        "model.path": str(tiny_model),
        "model.adapters": {name: str(tmp_path / "adapters" / name) for name in examples.adapters.ADAPTERS},
        "engine.kv_cache_memory": "16MiB",
        "engine.device": "cpu",
        "output": str(tmp_path / "out"),
    }
    job = load_job(ROOT / "examples" / "adapters.yaml", changes)
    planned, _ = run_steps(job)
    assert (planned.rows, planned.unique, planned.summary.adapters) == (9, 9, 2)
    rows = ask(job.output_folder, "SELECT question, generated_text FROM results")
    texts = {row["generated_text"] for row in rows if row["question"] == examples.adapters.QUESTIONS[0]}
    assert len(texts) == 3
