"""A stored plan's shards as an engine gets them: with each request's adapter and what its row asks."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.model.adapter_files import read_adapter
from engine.plan import ShardWork
from examples.adapters import write_adapter
from tasks import sections
from tasks.deduplicate import deduplicate_requests
from tasks.extract import extract_rows
from tasks.plan import NODE_SCHEMA, StoredPlan, make_run_plan
from tasks.shard_work import read_shard, to_work
from tasks.storage.run import Run, open_run
from tasks.storage.stored_plan import NODES, plan_folder
from tests.engine.tiny_adapters import llama_linears
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers

TEXTS = [f"shared instruction {'ab'[i % 2] * 20} {i}" for i in range(12)]
ADAPTERS = [["", "x", "y"][i % 3] for i in range(12)]


def works_of(run: Run, planned: StoredPlan) -> list[ShardWork]:
    batches = [read_shard(run, planned.plan_id, shard) for shard in planned.shards]
    return [
        to_work(run, planned.plan_id, planned.layout_id, shard, batch)
        for shard, batch in zip(planned.shards, batches, strict=True)
    ]


def test_a_stored_plan_keeps_adapters(job_of: JobMaker, tmp_path: Path) -> None:
    rows = [{"text": text, "weights": adapter} for text, adapter in zip(TEXTS, ADAPTERS, strict=True)]
    linears = llama_linears(64, 64, 32, 128, 2)
    folders = {name: write_adapter(tmp_path / name, linears, seed) for seed, name in enumerate("xy")}
    names = {name: read_adapter(folder).name for name, folder in folders.items()}
    keys = {"adapters": {name: str(folder) for name, folder in folders.items()}, "adapter_column": "weights"}
    job = job_of(rows, shard_seconds=1e-4)
    job = job_of(rows, shard_seconds=1e-4, model=job.model.model_dump() | keys)
    with open_run(job) as run:
        planned = make_run_plan(run, deduplicate_requests(run, extract_rows(run)), FakeWorkers())
        works = works_of(run, planned)
    assert len(works) > 2
    requests = [request for work in works for request in work.requests]
    adapter_of = {bytes(request.prompt_token_ids.tolist()).decode(): request.adapter for request in requests}
    assert adapter_of == {text: names.get(adapter) for text, adapter in zip(TEXTS, ADAPTERS, strict=True)}
    ran = [request.adapter for request in requests]
    assert ran == [ran[place // 4 * 4] for place in range(12)], "one behind the other"
    for work in works:
        nodes = {node.node_id: node for node in work.nodes}
        for request, node_id in zip(work.requests, work.node_of, strict=True):
            while node_id >= 0:
                assert nodes[node_id].adapter == request.adapter
                node_id = nodes[node_id].parent


def test_a_stored_plan_keeps_what_each_row_asks(job_of: JobMaker) -> None:
    """By prompt: the type, as the request's labels or none, and the row's own sampling over the job's."""
    rows = [
        {"text": "plain", "ask": None, "how": None},
        {"text": "drawn", "ask": "generate", "how": json.dumps({"temperature": 0.5, "seed": 7})},
        {"text": "chosen", "ask": json.dumps({"type": "choice", "labels": [" a", " b", " c"]}), "how": None},
    ]
    job = job_of(rows, task={"type": "generate", "column": "ask"}, sampling={"max_tokens": 9, "column": "how"})
    with open_run(job) as run:
        planned = make_run_plan(run, deduplicate_requests(run, extract_rows(run)), FakeWorkers())
        [work] = works_of(run, planned)
    asked = {bytes(request.prompt_token_ids.tolist()).decode(): request for request in work.requests}
    assert {text: len(request.labels or ()) for text, request in asked.items()} == {"plain": 0, "drawn": 0, "chosen": 3}
    params = asked["drawn"].params
    assert (params.temperature, params.seed, params.max_tokens) == (0.5, 7, 9)
    assert (asked["plain"].params.temperature, asked["plain"].params.max_tokens) == (0.0, 9)


def test_of_a_large_plan_a_shard_reads_its_own_section(job_of: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shard's nodes are those of the plan from its requests up; of 32 MB of others' nodes little is read."""
    monkeypatch.setattr(sections, "BATCH_ROWS", 4)
    monkeypatch.setattr(sections, "SECTION_ROWS", 4)
    with open_run(job_of([{"text": text} for text in TEXTS], shard_seconds=1e-4)) as run:
        planned = make_run_plan(run, deduplicate_requests(run, extract_rows(run)), FakeWorkers())
        path = plan_folder(run.folder, planned.plan_id) / NODES
        with pq.ParquetFile(path) as file:
            groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
        table = pa.concat_tables(groups)
        assert len(groups) == 3
        others = pa.table({name: np.full(10_000, -1) for name in NODE_SCHEMA.names}, NODE_SCHEMA)
        with pq.ParquetWriter(path, NODE_SCHEMA) as writer:
            for group in groups:
                writer.write_table(group)
            for _ in range(100):
                writer.write_table(others)
        tracemalloc.start()
        works = works_of(run, planned)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 4_000_000
    whole = np.stack([table.column(name).to_numpy() for name in NODE_SCHEMA.names], axis=1)
    for work in works:
        above: set[int] = set()
        for node in work.node_of:
            while node >= 0:
                above.add(node)
                node = int(whole[node, 0])
        assert [node.node_id for node in work.nodes] == sorted(above)
        for node in work.nodes:
            assert [node.parent, node.start, node.end, node.num_requests] == whole[node.node_id].tolist()
