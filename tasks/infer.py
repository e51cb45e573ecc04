"""Fourth step, once a shard: asks the engine, and commits the results as one part and one manifest."""

from dataclasses import dataclass, field

from prefect.tasks import exponential_backoff

from engine.failpoint import failpoint
from engine.plan import Shard
from tasks.answers_seen import AnswersSeen
from tasks.error_limit import ErrorLimit
from tasks.run_commits import RunCommits
from tasks.shard_gate import ShardGate
from tasks.shard_results import ShardResults
from tasks.shard_scorer import ShardScorer
from tasks.step import as_task
from tasks.storage.manifests import find_manifest
from tasks.storage.run import Run
from tasks.storage.shard_manifest import ShardManifest
from tasks.store.share import share_results
from tasks.transient import retry_transient
from tasks.workers import Worker


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


@dataclass(frozen=True, slots=True)
class Heeds:
    """What a shard heeds of others: `gate` is of its worker's, `commits`, `errors` and `answers` of all of the run.

    It is `suspected` where a worker was lost that had it.
    """

    gate: ShardGate
    commits: RunCommits
    errors: ErrorLimit
    answers: AnswersSeen = field(default_factory=AnswersSeen)
    suspected: bool = False


def infer_shard(
    run: Run,
    plan_id: str,
    shard: Shard,
    worker: Worker,
    heeds: Heeds | None = None,
) -> ShardDone:
    """Scores the rows of the shard that have no committed result, and commits it.

    `heeds` is what other shards have in common with it. An engine that dies is another one's turn: the rows that are
    left are asked again, alone, and the ones that kill it end as `ENGINE_CRASH`. Raises RunFailedError where another
    shard would end in the same way, and EngineLostError where the worker is lost.
    """
    run.folder.settle()
    done = find_manifest(run.folder, plan_id, shard.shard_id)
    if done is not None:
        return _to_done(done, skipped=True)
    failpoint("infer.start")
    heeds = heeds or Heeds(ShardGate(run.job.max_engine_deaths), RunCommits(), ErrorLimit(run.job))
    with heeds.commits.entered():
        results = ShardResults(run, plan_id, shard, heeds.commits)
        scorer = ShardScorer(results, worker, heeds.gate, heeds.errors, heeds.answers, run.job.checkpoint_seconds)
        scorer.score(suspected=heeds.suspected)
        failpoint("infer.scored")
        manifest, part = results.commit()
    failpoint("infer.done")
    share_results(run, results.asked, part, manifest.files[0])
    return _to_done(manifest, skipped=False)


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
