"""A strict job's table has the same bits whether it ran at once, in another order, or was stopped and went on."""

from pathlib import Path
from typing import Any

import pytest

from tests.tasks.steps import ask, model_job, plan_alone, run_steps

TEXTS = [f"The {what} by the {where}" for what in ("river", "harbour", "road") for where in ("mill", "old bridge")]
ROWS = [{"id": f"r{i}", "text": text} for i, text in enumerate(TEXTS)]
# What says how, and not what, was answered.
TABLE = "select * exclude (row_index, run_id, cached_tokens, attempts) from results order by custom_id"
STRICT = {"determinism": "strict", "device": "cpu", "kv_cache_memory": "8MiB"}


def bits(value: Any) -> Any:
    """Floats as their bits, wherever they stand."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, dict):
        return {key: bits(one) for key, one in value.items()}
    return [bits(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("sampling", [{"logprobs": 2}, {"temperature": 1.1, "n": 2}], ids=["greedy", "without a seed"])
def test_a_job_that_was_stopped_ends_in_the_same_bits(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampling: dict[str, Any]
) -> None:
    sampling = sampling | {"max_tokens": 6, "ignore_eos": True}
    tables = []
    for name, rows, engine, threads in (
        ("whole", ROWS, {}, "1"),
        ("stopped", ROWS[::-1], {"max_num_batched_tokens": 16, "sharing": "none", "block_size": 1}, "2"),
    ):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        (tmp_path / name).mkdir()
        job = model_job(
            tmp_path / name,
            tiny_model,
            rows,
            task={"type": "generate"},
            sampling=sampling,
            engine=STRICT | engine,
            shard_seconds=1e-4,
        )
        if name == "stopped":
            _, planned = plan_alone(job, scored_shards=1)
            assert len(planned.shards) > 1
        run_steps(job)
        assert [run["determinism"] for run in ask(job.output_folder, "select determinism from runs")] == ["strict"] * (
            2 if name == "stopped" else 1
        )
        tables.append(bits(ask(job.output_folder, TABLE)))
    assert len(tables[0]) == len(TEXTS)
    assert tables[0] == tables[1]
