"""`manifests/run-<sequence>.json`: what a run was asked, what it did, how it ended."""

import logging
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tasks.storage.damage import DamagedError, tell
from tasks.storage.output_folder import OutputFolder
from tasks.storage.stored_json import read_json, stage_json

log = logging.getLogger(__name__)

_NAME = re.compile(r"run-(\d{6,})-[0-9a-f]{6}\.json", re.ASCII)

RUNNING, COMPLETED, STOPPED = "running", "completed", "stopped"
FAILED, INTERRUPTED = "failed", "interrupted"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Counts are the run's own: `scored` requests it committed, of `pending` that were to do when it began.

    `holder` is the token of the lock that the run holds: while nobody holds the folder with it, the run is not alive,
    whatever `status` says. At its end `rows_done` of the plan's `rows` had an end, `row_errors` of them as errors.
    `limit_share` is the part of the device's limit that it reached while it computed, `price_per_hour` what an hour
    costs, as the job says. Times of day are for people; nothing is ordered by them.
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
    kv_cache_dtype: str = "auto"
    determinism: str = "default"
    full: bool = False
    holder: str = ""
    ended_at: str | None = None
    seconds: float | None = None
    plan_id: str | None = None
    published_plan: str | None = None
    rows: int | None = None
    rows_done: int | None = None
    row_errors: int | None = None
    rejected: int | None = None
    unique_requests: int | None = None
    committed_before: int | None = None
    from_store: int | None = None
    pending: int | None = None
    scored: int | None = None
    errors: int | None = None
    prompt_tokens: int | None = None
    unique_prompt_tokens: int | None = None
    computed_prompt_tokens: int | None = None
    planned_tokens: int | None = None
    generated_tokens: int | None = None
    ideal_saved_fraction: float | None = None
    limit_share: float | None = None
    price_per_hour: float | None = None
    error: str | None = None


def new_run_id(sequence: int) -> str:
    """Unique over all output folders: DuckDB finds relative file names in the working directory first."""
    return f"run-{sequence:06d}-{secrets.token_hex(3)}"


def read_records(folder: OutputFolder) -> list[RunRecord]:
    """All runs, oldest first. A damaged record is passed over: it decides nothing that is committed."""
    return inspect_records(folder)[0]


def inspect_records(folder: OutputFolder) -> tuple[list[RunRecord], list[DamagedError]]:
    """All runs, oldest first, and what is wrong with the records that are damaged."""
    found = [(int(match[1]), path) for path in _files(folder) if (match := _NAME.fullmatch(path.name))]
    good, damaged = [], []
    for _, path in sorted(found):
        try:
            good.append(_load(path))
        except DamagedError as problem:
            damaged.append(problem)
    return good, damaged


def verify_records(folder: OutputFolder) -> None:
    """Sets damaged records aside, as only the lock's holder may: the run is then known by what it committed alone."""
    for problem in inspect_records(folder)[1]:
        tell(problem, "that run is no longer listed; what it committed stays")
        folder.set_aside(problem.path)


def next_sequence(folder: OutputFolder) -> int:
    """One more than the highest that any file names, damaged ones too."""
    return 1 + max((int(match[1]) for path in _files(folder) if (match := _NAME.match(path.name))), default=0)


def create_record(folder: OutputFolder, record: RunRecord) -> None:
    created = folder.commit(stage_json(folder.staged("run.json"), asdict(record)), record_path(folder, record))
    assert created, f"{record.run_id} is taken, though the lock is held"


def update_record(folder: OutputFolder, run_id: str, **changes: Any) -> None:
    """A record that is damaged stays so: it decides nothing that is committed."""
    path = folder.manifests / f"{run_id}.json"
    try:
        record = _load(path)
    except DamagedError as problem:
        log.warning("%s: %s has lost its record", problem, run_id)
        return
    folder.replace(stage_json(folder.staged("run.json"), asdict(replace(record, **changes))), path)


def record_path(folder: OutputFolder, record: RunRecord) -> Path:
    return folder.manifests / f"{record.run_id}.json"


def _files(folder: OutputFolder) -> Iterable[Path]:
    return folder.manifests.iterdir() if folder.manifests.is_dir() else ()


def _load(path: Path) -> RunRecord:
    content = read_json(path)
    with suppress(TypeError):
        record = RunRecord(**content)
        if f"{record.run_id}.json" == path.name:
            return record
    raise DamagedError(path, "is another version's, or another run's")
