"""A job on devices that are not there: totals of the plan, for each policy, shared out over the devices."""

import json
from dataclasses import replace

import pytest

from engine.errors import UserError
from engine.planning.described_table import DescribedTable
from flows.show_simulation import show_simulation
from tasks import simulate
from tasks.dry_run import plan_job
from tasks.job.job import ScoringJob
from tasks.simulate import simulate_job
from tests.tasks.conftest import JobMaker

ROWS = [{"id": f"r{i}", "text": f"shared instruction {'abc'[i % 3] * 20} {i}", "topic": i} for i in range(30)]
TABLE = DescribedTable(groups=30, degree=4, prefix=40, distinct=8, output=6)


def job(job_of: JobMaker) -> ScoringJob:
    return job_of(ROWS, source={"id": "id"}, shard_seconds=1e-5)


def test_a_jobs_rows(job_of: JobMaker) -> None:
    made = job(job_of)
    planned = plan_job(made)
    one, two = (simulate_job(made, devices=devices, price_per_hour=3.0) for devices in (1, 2))
    assert len(planned.shards) > 4
    own = one.policies[0]
    assert (one.rows, own.refused) == (30, 0)
    assert (own.prompt_tokens, own.computed_tokens) == (planned.plan.prompt_tokens, planned.plan.computed_tokens)
    assert own.label_tokens == planned.plan.label_tokens
    assert own.saved_fraction == pytest.approx(planned.plan.saved_fraction)
    assert own.kv_peak * planned.plan.kv_cache_memory == pytest.approx(planned.plan.peak_kv_bytes, rel=0.1)
    assert own.cost == pytest.approx(3.0 * own.seconds / 3600)
    # Each device computes the prefixes that its shards need, so that both together compute no less.
    assert own.seconds / 2 <= two.policies[0].seconds < own.seconds
    assert own.computed_tokens <= two.policies[0].computed_tokens
    assert two.policies[0].device_hours == pytest.approx(2 * two.policies[0].seconds / 3600)


def test_a_policy_a_row(job_of: JobMaker) -> None:
    policies = [(one.sharing, one.order, one.admission) for one in simulate_job(job(job_of), table=TABLE).policies]
    assert policies == [
        ("multi_level", "ratio", "memory"),
        ("none", "ratio", "memory"),
        ("batchllm", "ratio", "memory"),
        ("single_level", "ratio", "memory"),
        ("multi_level", "fcfs", "memory"),
        ("multi_level", "ratio", "count"),
    ]


def test_a_described_table_on_many_devices(job_of: JobMaker) -> None:
    """Twelve have as many groups each; the time is the busiest's, and the tokens all devices'."""
    made = job(job_of)
    shared, alone, *_ = simulate_job(made, devices=12, device="h100", table=TABLE).policies
    assert shared.prompt_tokens == alone.computed_tokens == TABLE.rows * 48
    assert shared.computed_tokens == 30 * (40 + 4 * 8)
    assert shared.decode_tokens == TABLE.rows * 5
    assert 0 < shared.utilisation < 1
    busiest = simulate_job(made, device="h100", table=replace(TABLE, groups=3)).policies[0]
    assert shared.seconds == busiest.seconds
    assert shared.cost is None


def test_more_than_is_simulated(job_of: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    made = job(job_of)
    monkeypatch.setattr(simulate, "MOST_ROWS", 14)
    with pytest.raises(UserError, match="--devices"):
        simulate_job(made, devices=2)
    assert simulate_job(made, devices=3).rows == 30
    with pytest.raises(UserError, match="--devices"):
        simulate_job(made, devices=8, table=TABLE)


def test_shown(job_of: JobMaker, capsys: pytest.CaptureFixture[str]) -> None:
    found = simulate_job(job(job_of), devices=3, price_per_hour=2.0, table=TABLE)
    show_simulation(found, "json")
    content = json.loads(capsys.readouterr().out)
    assert content["policies"][0]["computed_tokens"] == found.policies[0].computed_tokens
    show_simulation(found, "table")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("120 requests on 3 devices, each ")
    assert [line.split()[:3] for line in lines if "count" in line] == [["multi_level", "ratio", "count"]]
    assert "cost" in lines[2]


def test_a_plan_as_json(job_of: JobMaker) -> None:
    planned = plan_job(job(job_of))
    content = json.loads(json.dumps(planned.as_json()))
    assert (content["rows"], content["pending"], len(content["shards"])) == (30, 30, len(planned.shards))
    assert content["plan"]["saved_fraction"] == planned.plan.saved_fraction
    assert content["expected_seconds"] == planned.expected_seconds
    assert content["memory_bytes"] == planned.memory.total
    assert "text" not in content
