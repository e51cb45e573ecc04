"""How a run's record ends: as it said itself, or as the next run found it."""

from collections.abc import Sequence

from engine.failpoint import failpoint
from tasks.storage.manifests import ShardManifest, read_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run_progress import read_progress
from tasks.storage.run_record import INTERRUPTED, RUNNING, read_records, update_record


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


def own_counts(manifests: Sequence[ShardManifest], run_id: str) -> dict[str, int]:
    """Sums over the shards that the run committed itself, by the record's names."""
    own = [manifest for manifest in manifests if manifest.run_id == run_id]
    return {
        "scored": sum(manifest.requests - manifest.from_store for manifest in own),
        "errors": sum(manifest.errors for manifest in own),
        "prompt_tokens": sum(manifest.row_prompt_tokens for manifest in own),
        "unique_prompt_tokens": sum(manifest.prompt_tokens for manifest in own),
        "computed_prompt_tokens": sum(manifest.computed_prompt_tokens for manifest in own),
        "planned_tokens": sum(manifest.planned_tokens for manifest in own),
        "generated_tokens": sum(manifest.generated_tokens for manifest in own),
    }
