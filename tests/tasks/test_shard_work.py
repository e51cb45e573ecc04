"""A stored plan's shards as an engine gets them: with each request's adapter, and without the column as before it."""

import pyarrow as pa
import pytest

from engine.plan import ShardWork
from tasks import plan as plan_step
from tasks.deduplicate import deduplicate_requests
from tasks.extract import extract_rows
from tasks.plan import StoredPlan, make_run_plan
from tasks.sections import read_sections
from tasks.shard_work import read_shard, to_work
from tasks.storage.run import Run, open_run
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers

TEXTS = [f"shared instruction {'ab'[i % 2] * 20} {i}" for i in range(12)]
ADAPTERS = [[None, "x", "y"][i % 3] for i in range(12)]


def with_adapters(section: pa.Table) -> pa.Table:
    """The rows as a job with a column of adapters would leave them."""
    return section.append_column("adapter", pa.array(ADAPTERS, pa.string()))


def works_of(run: Run, planned: StoredPlan) -> list[ShardWork]:
    batches = [read_shard(run, planned.plan_id, shard) for shard in planned.shards]
    return [
        to_work(run, planned.plan_id, planned.layout_id, shard, batch)
        for shard, batch in zip(planned.shards, batches, strict=True)
    ]


def test_a_stored_plan_keeps_adapters(job_of: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_step, "read_sections", lambda path: map(with_adapters, read_sections(path)))
    job = job_of([{"text": text} for text in TEXTS], shard_seconds=1e-4)
    with open_run(job) as run:
        planned = make_run_plan(run, deduplicate_requests(run, extract_rows(run)), FakeWorkers())
        works = works_of(run, planned)
    assert len(works) > 2
    requests = [request for work in works for request in work.requests]
    adapter_of = {bytes(request.prompt_token_ids.tolist()).decode(): request.adapter for request in requests}
    assert adapter_of == dict(zip(TEXTS, ADAPTERS, strict=True))
    assert [request.adapter for request in requests] == [None] * 4 + ["x"] * 4 + ["y"] * 4
    for work in works:
        nodes = {node.node_id: node for node in work.nodes}
        for request, node_id in zip(work.requests, work.node_of, strict=True):
            while node_id >= 0:
                assert nodes[node_id].adapter == request.adapter
                node_id = nodes[node_id].parent


def test_a_plan_stored_without_the_column_is_of_no_adapter(job_of: JobMaker) -> None:
    job = job_of([{"text": text} for text in TEXTS])
    with open_run(job) as run:
        planned = make_run_plan(run, deduplicate_requests(run, extract_rows(run)), FakeWorkers())
        [shard] = planned.shards
        rows = read_shard(run, planned.plan_id, shard)
        assert rows.column("adapter").null_count == len(TEXTS)
        before = rows.drop_columns(["adapter"])
        work = to_work(run, planned.plan_id, planned.layout_id, shard, before)
    assert [request.adapter for request in work.requests] == [None] * len(TEXTS)
    assert {node.adapter for node in work.nodes} == {None}
    assert work.nodes == to_work(run, planned.plan_id, planned.layout_id, shard, rows).nodes
