"""`manifests/run-<sequence>.json`: what a run was asked, what it did, how it ended."""

import json
import logging
import re
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tasks.commit import commit_file, replace_file, stage_json
from tasks.output_folder import OutputFolder

log = logging.getLogger(__name__)

_NAME = re.compile(r"run-(\d{6,})-[0-9a-f]{6}\.json", re.ASCII)

RUNNING, COMPLETED, FAILED, INTERRUPTED = "running", "completed", "failed", "interrupted"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Counts are the run's own: `scored` requests it committed, of `pending` that were to do when it began.

    Times of day are for people; nothing is ordered by them.
    """

    sequence: int
    run_id: str
    status: str
    name: str
    model: str
    model_fingerprint: str
    dtype: str
    device: str
    retry_failed: bool
    version: str
    started_at: str
    quantization: str = "none"
    ended_at: str | None = None
    seconds: float | None = None
    plan_id: str | None = None
    published_plan: str | None = None
    rows: int | None = None
    rejected: int | None = None
    unique_requests: int | None = None
    committed_before: int | None = None
    pending: int | None = None
    scored: int | None = None
    errors: int | None = None
    prompt_tokens: int | None = None
    unique_prompt_tokens: int | None = None
    computed_prompt_tokens: int | None = None
    planned_tokens: int | None = None
    generated_tokens: int | None = None
    ideal_saved_fraction: float | None = None
    error: str | None = None


def new_run_id(sequence: int) -> str:
    """Unique over all output folders: DuckDB finds relative file names in the working directory first."""
    return f"run-{sequence:06d}-{secrets.token_hex(3)}"


def read_records(folder: OutputFolder) -> list[RunRecord]:
    """All runs, oldest first. A damaged record is passed over: it decides nothing that is committed."""
    found = [(int(match[1]), path) for path in _files(folder) if (match := _NAME.fullmatch(path.name))]
    records = [_load(path) for _, path in sorted(found)]
    return [record for record in records if record is not None]


def next_sequence(folder: OutputFolder) -> int:
    """One more than the highest that any file names, damaged ones too."""
    return 1 + max((int(match[1]) for path in _files(folder) if (match := _NAME.match(path.name))), default=0)


def create_record(folder: OutputFolder, record: RunRecord) -> None:
    created = commit_file(stage_json(folder.staged("run.json"), asdict(record)), record_path(folder, record))
    assert created, f"{record.run_id} is taken, though the lock is held"


def update_record(folder: OutputFolder, run_id: str, **changes: Any) -> None:
    """A record that is damaged stays so: it decides nothing that is committed."""
    path = folder.manifests / f"{run_id}.json"
    record = _load(path)
    if record is None:
        log.warning("%s has lost its record", run_id)
        return
    replace_file(stage_json(folder.staged("run.json"), asdict(replace(record, **changes))), path)


def mark_interrupted(folder: OutputFolder) -> None:
    """Whoever holds the lock knows that no other run is alive."""
    for record in read_records(folder):
        if record.status == RUNNING:
            update_record(folder, record.run_id, status=INTERRUPTED)


def record_path(folder: OutputFolder, record: RunRecord) -> Path:
    return folder.manifests / f"{record.run_id}.json"


def _files(folder: OutputFolder) -> Iterable[Path]:
    return folder.manifests.iterdir() if folder.manifests.is_dir() else ()


def _load(path: Path) -> RunRecord | None:
    try:
        return RunRecord(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
