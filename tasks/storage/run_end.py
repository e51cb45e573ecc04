"""How a run's record ends: as it said itself, or as the next run found it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from engine.failpoint import failpoint
from tasks.storage.bucket_errors import BucketUnavailableError
from tasks.storage.manifests import read_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run_progress import read_progress
from tasks.storage.run_record import INTERRUPTED, RUNNING, read_records, update_record
from tasks.storage.shard_manifest import ShardManifest


def record_end(
    folder: OutputFolder, run_id: str, status: str, *, ended_at: str, seconds: float, error: str | None
) -> None:
    """`ended_at` is a time of day, `error` what ended the run where it did not complete."""
    counts = own_counts(read_manifests(folder), run_id)
    failpoint("run.ending")
    update_record(folder, run_id, status=status, error=error, seconds=round(seconds, 3), ended_at=ended_at, **counts)


def mark_interrupted(folder: OutputFolder) -> None:
    """Whoever holds the lock knows that no other run is alive."""
    progress = read_progress(folder)
    for record in read_records(folder):
        if record.status == RUNNING:
            counts: dict[str, float | None] = {**own_counts(read_manifests(folder), record.run_id)}
            if progress is not None and progress.run_id == record.run_id:
                counts |= {"seconds": progress.seconds}
                if record.rows_done is None:
                    counts |= {"rows_done": progress.rows_done, "row_errors": progress.row_errors}
            update_record(folder, record.run_id, status=INTERRUPTED, **counts)


@contextmanager
def ctrl_c_first() -> Iterator[None]:
    """Ctrl-C stays what ended a run, where what was left to do behind it failed as the bucket is away."""
    try:
        yield
    except BucketUnavailableError as problem:
        before: BaseException | None = problem
        while before is not None and not isinstance(before, KeyboardInterrupt):
            before = before.__context__
        if before is None:
            raise
        raise KeyboardInterrupt from problem


def own_counts(manifests: Sequence[ShardManifest], run_id: str) -> dict[str, int]:
    """Sums over what the run committed itself, of shards that another finished too, by the record's names."""
    own = [share for manifest in manifests for share in manifest.by_run if share.run_id == run_id]
    return {
        "scored": sum(share.requests - share.from_store for share in own),
        "errors": sum(share.errors for share in own),
        "prompt_tokens": sum(share.row_prompt_tokens for share in own),
        "unique_prompt_tokens": sum(share.prompt_tokens for share in own),
        "computed_prompt_tokens": sum(share.computed_prompt_tokens for share in own),
        "planned_tokens": sum(share.planned_tokens for share in own),
        "generated_tokens": sum(share.generated_tokens for share in own),
    }
