"""Third step: shared prefixes, execution order and shards, stored so that any process can run any shard."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engine.config import EngineConfig
from engine.engine_cache import get_engine
from engine.plan import Plan, PlanSummary, PrefixNode
from engine.planner import make_plan
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.step_budget import known_step_tokens
from tasks.commit import open_private
from tasks.deduplicate import PENDING, Deduplicated
from tasks.failpoint import failpoint
from tasks.run import Run
from tasks.run_record import update_record
from tasks.step import as_task
from tasks.stored_plan import NODES, REQUESTS, ROWS, load_plan, store_plan
from tasks.stored_plan import Planned as Planned
from tasks.token_arrays import TOKEN_LIST, TOKEN_LISTS, from_list_array, from_lists_array

REQUEST_SCHEMA = pa.schema(
    [
        ("request_hash", pa.string()),
        ("prompt_token_ids", TOKEN_LIST),
        ("labels", TOKEN_LISTS),
        ("label_texts", pa.list_(pa.string())),
        ("max_tokens", pa.int32()),
        ("attempts", pa.int32()),
        ("num_rows", pa.int64()),
        ("node", pa.int64()),
    ]
)
NODE_FIELDS = ("parent", "start", "end", "num_requests")


def make_run_plan(run: Run, deduplicated: Deduplicated) -> Planned:
    """The run's plan, on the disk: a new one, or the one that an unfinished run left."""
    planned = _reuse_or_store(run, deduplicated)
    update_record(
        run.folder,
        run.run_id,
        plan_id=planned.plan_id,
        rows=planned.rows,
        rejected=planned.rejected,
        unique_requests=planned.unique,
        committed_before=planned.committed,
        pending=planned.pending,
        ideal_saved_fraction=planned.summary.ideal_saved_fraction,
    )
    return planned


def _reuse_or_store(run: Run, deduplicated: Deduplicated) -> Planned:
    if deduplicated.reused_plan is not None:
        return load_plan(run.folder, deduplicated.reused_plan)
    failpoint("plan.start")
    pending = pq.read_table(deduplicated.folder / PENDING)
    plan = plan_requests(run, pending, _limits(run) if pending.num_rows else run.config)
    planned = _describe(run, deduplicated, plan)
    staged = run.folder.staged(planned.plan_id)
    staged.mkdir(mode=0o700)
    (deduplicated.folder / ROWS).rename(staged / ROWS)
    _write_requests(plan, pending, staged / REQUESTS)
    _write_nodes(plan.nodes, staged / NODES)
    store_plan(run, planned, staged)
    return planned


def _limits(run: Run) -> EngineConfig:
    """The engine's own: a step's tokens that nobody knows yet are measured when it loads, so the plan waits for it."""
    tokens = known_step_tokens(run.model, run.config, run.device)
    if tokens is None:
        return get_engine(run.model, run.config).config
    return replace(run.config, max_num_batched_tokens=tokens)


def plan_requests(run: Run, pending: pa.Table, config: EngineConfig) -> Plan:
    """`pending` as `deduplicate` writes it; `config` is the run's, with a step's tokens settled."""
    if pending.num_rows == 0:
        return _empty_plan(run)
    return make_plan(
        list(_requests(pending, run)),
        run.shape,
        config,
        dtype_bytes=run.kv_dtype_bytes,
        flops_per_second=run.device.flops_per_second,
        shard_seconds=run.job.shard_seconds,
    )


def to_requests(batch: pa.RecordBatch, params: SamplingParams, *, is_choice: bool) -> Iterator[Request]:
    """The engine's requests, out of rows of `pending.parquet` or `requests.parquet`."""
    hashes = batch.column("request_hash").to_pylist()
    prompts = from_list_array(batch.column("prompt_token_ids"))
    labels = from_lists_array(batch.column("labels")) if is_choice else [None] * len(prompts)
    by_room: dict[int, SamplingParams] = {}
    for request_hash, prompt, own, room in zip(
        hashes, prompts, labels, batch.column("max_tokens").to_pylist(), strict=True
    ):
        if room not in by_room:
            by_room[room] = replace(params, max_tokens=room, min_tokens=min(params.min_tokens, room))
        yield Request(request_hash, prompt, by_room[room], own)


def _requests(pending: pa.Table, run: Run) -> Iterator[Request]:
    for batch in pending.to_batches():
        yield from to_requests(batch, run.job.sampling.params(), is_choice=run.job.task.type == "choice")


def _empty_plan(run: Run) -> Plan:
    nothing: NDArray[np.int64] = np.empty(0, np.int64)
    summary = PlanSummary(0, 0, 0, 0, 0, 0, 0, 0, run.config.kv_cache_memory, 0.0)
    return Plan("empty", (), nothing, nothing, (), summary)


def _describe(run: Run, deduplicated: Deduplicated, plan: Plan) -> Planned:
    return Planned(
        plan_id=run.run_id.replace("run-", "plan-"),
        layout_id=plan.plan_id,
        run_id=run.run_id,
        fingerprint=run.fingerprint,
        source_digest=deduplicated.source_digest,
        retry_failed=run.retry_failed,
        rows=deduplicated.rows,
        rejected=deduplicated.rejected,
        unique=deduplicated.unique,
        committed=deduplicated.committed,
        pending=deduplicated.pending,
        summary=plan.summary,
        text=str(plan),
        shards=plan.shards,
    )


def _write_requests(plan: Plan, pending: pa.Table, path: Path) -> None:
    """In execution order, one row group a shard."""
    # A plan may hold more tokens than the 32-bit offsets of one list array can count.
    wide = pending.schema.set(1, pa.field("prompt_token_ids", pa.large_list(pa.int32())))
    assert pending.schema.names[1] == "prompt_token_ids", pending.schema.names
    pending = pending.cast(wide).combine_chunks()
    with open_private(path) as file, pq.ParquetWriter(file, REQUEST_SCHEMA, compression="zstd") as writer:
        for shard in plan.shards:
            chosen = plan.order[shard.first : shard.last]
            table = pending.take(pa.array(chosen)).append_column("node", pa.array(plan.node_of[chosen]))
            writer.write_table(table.cast(REQUEST_SCHEMA), row_group_size=len(chosen))


def _write_nodes(nodes: Sequence[PrefixNode], path: Path) -> None:
    """Row i is node i."""
    columns = {name: [getattr(node, name) for node in nodes] for name in NODE_FIELDS}
    with open_private(path) as file:
        pq.write_table(pa.table({name: pa.array(values, pa.int64()) for name, values in columns.items()}), file)


plan = as_task(make_run_plan, "plan")
