"""Fourth step, once a shard: asks the engine, and commits the results as one part and one manifest."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, compress

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect.tasks import exponential_backoff

from engine.failpoint import failpoint
from engine.plan import Shard
from engine.request import RequestOutput
from tasks.request.task_types import answer_of
from tasks.shard_work import outputs_by_row, read_shard, stored_requests, to_work
from tasks.step import as_task
from tasks.storage.commit import commit_file, open_private, sha256_of
from tasks.storage.manifests import PartFile, ShardManifest, find_manifest, write_manifest
from tasks.storage.parts import to_part
from tasks.storage.run import Run
from tasks.storage.stored_plan import layout_of
from tasks.store.share import share_results
from tasks.transient import retry_transient
from tasks.workers import OnOutput, Workers


@dataclass(frozen=True, slots=True)
class ShardDone:
    """A committed shard. `skipped`: it was committed before, and nothing ran."""

    shard_id: str
    index: int
    requests: int
    rows: int
    errors: int
    prompt_tokens: int
    computed_prompt_tokens: int
    generated_tokens: int
    seconds: float
    skipped: bool


def infer_shard(run: Run, plan_id: str, shard: Shard, workers: Workers, on_output: OnOutput | None = None) -> ShardDone:
    """Scores the shard if it is not committed. Raises EngineDeadError where the engine ends; then try again."""
    done = find_manifest(run.folder, plan_id, shard.shard_id)
    if done is not None:
        return _to_done(done, skipped=True)
    failpoint("infer.start")
    started = time.monotonic()
    rows = read_shard(run, plan_id, shard)
    work = to_work(run, plan_id, layout_of(run.folder, plan_id), shard, rows)
    outputs = outputs_by_row(rows, workers.submit(work, on_output).result())
    failpoint("infer.scored")
    asked = stored_requests(rows)
    results = to_part(asked, outputs, answer_of, run.run_id, shard.shard_id)
    part = _commit_part(run, shard, results)
    lengths = pc.cast(results.column("prompt_tokens"), pa.int64())
    manifest = _describe(run, plan_id, shard, rows, lengths, outputs, part, time.monotonic() - started)
    write_manifest(run.folder, manifest)
    failpoint("infer.done")
    share_results(run, asked, results, part)
    return _to_done(manifest, skipped=False)


def _commit_part(run: Run, shard: Shard, part: pa.Table) -> PartFile:
    """Named by its content: a part that is there under this name, from a try that went no further, is this part."""
    staged = run.folder.staged("part.parquet")
    with open_private(staged) as file:
        pq.write_table(part, file, compression="zstd")
    digest = sha256_of(staged)
    size = staged.stat().st_size
    name = f"{shard.shard_id}-{digest[:16]}.parquet"
    failpoint("part.staged")
    commit_file(staged, run.folder.parts / name)
    return PartFile(name, digest, part.num_rows, size)


def _describe(
    run: Run,
    plan_id: str,
    shard: Shard,
    rows: pa.RecordBatch,
    lengths: pa.ChunkedArray,
    outputs: Sequence[Sequence[RequestOutput]],
    part: PartFile,
    seconds: float,
) -> ShardManifest:
    """`lengths` are the tokens of each row's prompts."""
    num_rows = rows.column("num_rows")
    # Several shards run in one engine at once, so what one of them computed is known from its outputs alone.
    every = list(chain.from_iterable(outputs))
    failed = [any(one.finish_reason == "error" for one in row) for row in outputs]
    computed = sum(one.prompt_tokens - one.num_cached_tokens for one in every if one.finish_reason != "error")
    return ShardManifest(
        plan_id=plan_id,
        shard_id=shard.shard_id,
        run_id=run.run_id,
        shard_index=shard.index,
        fingerprint=run.fingerprint,
        files=(part,),
        requests=rows.num_rows,
        rows=pc.sum(num_rows).as_py(),
        errors=sum(failed),
        seconds=round(seconds, 3),
        prompt_tokens=pc.sum(lengths).as_py(),
        row_prompt_tokens=pc.sum(pc.multiply(lengths, num_rows)).as_py(),
        planned_tokens=shard.prefill_tokens,
        computed_prompt_tokens=computed,
        generated_tokens=sum(len(one.token_ids) for one in every),
        row_errors=sum(compress(num_rows.to_pylist(), failed)),
    )


def _to_done(manifest: ShardManifest, *, skipped: bool) -> ShardDone:
    return ShardDone(
        shard_id=manifest.shard_id,
        index=manifest.shard_index,
        requests=manifest.requests,
        rows=manifest.rows,
        errors=manifest.errors,
        prompt_tokens=manifest.prompt_tokens,
        computed_prompt_tokens=manifest.computed_prompt_tokens,
        generated_tokens=manifest.generated_tokens,
        seconds=manifest.seconds,
        skipped=skipped,
    )


infer = as_task(
    infer_shard,
    "infer",
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=1,
    retry_condition_fn=retry_transient,
)
