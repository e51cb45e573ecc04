"""Third step: shared prefixes, execution order and shards, stored so that any process can run any shard."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engine.config import EngineConfig
from engine.failpoint import failpoint
from engine.loop.plan_cost import plan_cost
from engine.loop.step_budget import known_step_tokens
from engine.plan import Plan, PlanOutline, PrefixNodes, join
from engine.planning.planner import plan_table
from engine.stages import checkpoint
from tasks.deduplicate import PENDING, Deduplicated
from tasks.report.latest import remember_output
from tasks.report.published import shown_plan
from tasks.report.views import write_views
from tasks.request.request_columns import to_columns
from tasks.sections import read_sections
from tasks.step import as_task
from tasks.storage.commit import open_private
from tasks.storage.file_mode import make_folder
from tasks.storage.run import Run
from tasks.storage.run_adapters import adapter_sizes
from tasks.storage.run_record import read_records, update_record
from tasks.storage.stored_plan import DIGESTS, NODES, REQUESTS, ROWS, load_plan, plan_id_of, store_plan
from tasks.storage.stored_plan import StoredPlan as StoredPlan
from tasks.storage.token_arrays import TOKEN_LIST, TOKEN_LISTS
from tasks.workers import Workers

REQUEST_SCHEMA = pa.schema(
    [
        ("request_hash", pa.string()),
        ("prompt_token_ids", TOKEN_LIST),
        ("labels", TOKEN_LISTS),
        ("label_texts", pa.list_(pa.string())),
        ("max_tokens", pa.int32()),
        ("ask", pa.string()),
        ("adapter", pa.string()),
        ("attempts", pa.int32()),
        ("num_rows", pa.int64()),
        ("nodes", pa.list_(pa.int64())),  # of each of the engine's requests for the row
    ]
)
# At the end of a run a worker waits for another's last shard at most: the less, the more of them there are. The fewer,
# the more rows are computed side by side.
SHARDS_A_WORKER = 4
NODE_FIELDS = ("parent", "start", "end", "num_requests")
NODE_SCHEMA = pa.schema([(name, pa.int64()) for name in NODE_FIELDS])


def make_run_plan(run: Run, deduplicated: Deduplicated, workers: Workers) -> StoredPlan:
    """The run's plan, on the disk: a new one, or the one that an unfinished run left.

    From here on the folder can be queried; it shows what was published before until this run publishes.
    """
    planned = _reuse_or_store(run, deduplicated, workers)
    update_record(
        run.folder,
        run.run_id,
        plan_id=planned.plan_id,
        rows=planned.rows,
        rejected=planned.rejected,
        unique_requests=planned.unique,
        committed_before=planned.committed,
        from_store=planned.from_store,
        pending=planned.pending,
        ideal_saved_fraction=planned.summary.ideal_saved_fraction,
    )
    write_views(run.folder, shown_plan(run.folder, read_records(run.folder)) or planned.plan_id)
    remember_output(run.folder)
    return planned


def _reuse_or_store(run: Run, deduplicated: Deduplicated, workers: Workers) -> StoredPlan:
    if deduplicated.reused_plan is not None:
        return load_plan(run.folder, deduplicated.reused_plan)
    failpoint("plan.start")
    config = _limits(run, workers) if deduplicated.pending else run.config
    staged = run.folder.staged(plan_id_of(run.run_id))
    make_folder(staged)
    for name in (ROWS,) if deduplicated.row_digests is None else (ROWS, DIGESTS):
        (deduplicated.folder / name).rename(staged / name)
    sections = plan_sections(run, deduplicated.folder / PENDING, config, len(workers.each()))
    outlines = list(_write_sections(sections, staged))
    planned = _describe(run, deduplicated, join(outlines, config.kv_cache_memory))
    store_plan(run.folder, planned, run.job.model_dump(mode="json"), staged)
    return planned


def _limits(run: Run, workers: Workers) -> EngineConfig:
    """The engine's own: a step's tokens that nobody knows yet are measured when it loads, so the plan waits for it."""
    tokens = known_step_tokens(run.model, run.config, run.device)
    if tokens is None:
        return workers.config()
    return replace(run.config, max_num_batched_tokens=tokens)


@dataclass(frozen=True, slots=True, eq=False)
class PlannedSection:
    """The plan of a section's rows, each of which has `row_sizes` of its requests."""

    plan: Plan
    rows: pa.Table
    row_sizes: NDArray[np.int64]


def plan_sections(run: Run, pending: Path, config: EngineConfig, workers: int = 1) -> Iterator[PlannedSection]:
    """Plans of `pending.parquet` for so many workers; `config` is the run's, with a step's tokens settled."""
    cost = plan_cost(run.model, run.shape, run.config, run.device)
    for section in read_sections(pending):
        checkpoint()
        (rows,) = section.to_batches()
        requests, sizes = to_columns(rows)
        plan = plan_table(
            requests,
            config,
            cost,
            shard_seconds=run.job.shard_seconds,
            min_shards=SHARDS_A_WORKER * workers if workers > 1 else 1,
            row_sizes=sizes,
            adapters=adapter_sizes(requests.adapters, run.shape, run.config, run.device),
        )
        yield PlannedSection(plan, section, sizes)


def _describe(run: Run, deduplicated: Deduplicated, outline: PlanOutline) -> StoredPlan:
    return StoredPlan(
        plan_id=plan_id_of(run.run_id),
        layout_id=outline.layout_id,
        run_id=run.run_id,
        fingerprint=run.fingerprint,
        source_digest=deduplicated.source_digest,
        retry_failed=run.retry_failed,
        full=run.full,
        from_store=deduplicated.from_store,
        row_digests=deduplicated.row_digests,
        rows=deduplicated.rows,
        rejected=deduplicated.rejected,
        unique=deduplicated.unique,
        committed=deduplicated.committed,
        pending=deduplicated.pending,
        summary=outline.summary,
        text=str(outline),
        shards=outline.shards,
    )


def _write_sections(sections: Iterable[PlannedSection], staged: Path) -> Iterator[PlanOutline]:
    """To `requests.parquet` in execution order, a row group a shard, and to `nodes.parquet`, where row i is node i."""
    with (
        open_private(staged / REQUESTS) as requests_file,
        pq.ParquetWriter(requests_file, REQUEST_SCHEMA, compression="zstd") as requests,
        open_private(staged / NODES) as nodes_file,
        pq.ParquetWriter(nodes_file, NODE_SCHEMA) as nodes,
    ):
        num_nodes = 0
        for section in sections:
            _write_requests(section, num_nodes, requests)
            nodes.write_table(_node_table(section.plan.nodes, num_nodes))
            num_nodes += len(section.plan.nodes)
            yield section.plan.outline


def _write_requests(section: PlannedSection, first_node: int, writer: pq.ParquetWriter) -> None:
    plan, sizes = section.plan, section.row_sizes
    row_of = np.repeat(np.arange(len(sizes)), sizes)
    for shard in plan.shards:
        chosen = plan.order[shard.first : shard.last]  # a row's requests follow each other
        rows = row_of[chosen]
        firsts = np.flatnonzero(np.diff(rows, prepend=-1))
        offsets = pa.array(np.append(firsts, len(chosen)), pa.int32())
        nodes = pa.ListArray.from_arrays(offsets, pa.array(first_node + plan.node_of[chosen]))
        table = section.rows.take(pa.array(rows[firsts])).append_column("nodes", nodes)
        writer.write_table(table.select(REQUEST_SCHEMA.names).cast(REQUEST_SCHEMA), row_group_size=len(firsts))


def _node_table(nodes: PrefixNodes, first_node: int) -> pa.Table:
    columns = {name: getattr(nodes, name) for name in NODE_FIELDS}
    columns["parent"] = np.where(nodes.parent < 0, nodes.parent, first_node + nodes.parent)
    return pa.table(columns, NODE_SCHEMA)


plan = as_task(make_run_plan, "plan")
