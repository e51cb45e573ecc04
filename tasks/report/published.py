"""What an output folder can show now, and what it should show but cannot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from engine.errors import UserError
from tasks.storage.damage import DamagedError
from tasks.storage.duck import MEMORY
from tasks.storage.interruptible import fetch_all
from tasks.storage.manifests import inspect_manifests, manifest_path, shard_of
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run_record import RUNNING, RunRecord, inspect_records
from tasks.storage.shard_manifest import ShardManifest
from tasks.storage.statements import identifier, statement
from tasks.storage.stored_plan import ROWS, check_plan_file, load_plan, plan_folder, plan_id_of, plan_ids

# More reasons than a person reads.
_MOST_REASONS = 5


@dataclass(frozen=True, slots=True)
class PublishedFolder:
    """`manifests` are of sound shards alone; `reasons` say, file by file, what is missing beside them.

    `running` is the run that goes on in the folder: what is not committed yet is not missing.
    """

    folder: OutputFolder
    plan_id: str
    name: str | None
    manifests: tuple[ShardManifest, ...]
    reasons: tuple[str, ...]
    running: str | None = None

    @property
    def rows_file(self) -> Path:
        return plan_folder(self.folder, self.plan_id) / ROWS

    def warning(self, connection: duckdb.DuckDBPyConnection, database: str = MEMORY) -> str | None:
        """One line where rows or shards are missing from the views of `database`: how many, why, and the cure."""
        count = statement("steps/count_rows", outcomes=f"{identifier(database)}.detail.outcomes")
        rows, ended = fetch_all(connection, count, {"rows": str(self.rows_file)})[0]
        if rows == ended and not self.reasons:
            return None
        if self.running is not None and not self.reasons:
            return f"{self.folder}: {self.running} is running; {ended:,} of {rows:,} rows have an end so far"
        lost = f"{rows - ended:,} of {rows:,} rows are missing" if rows > ended else "no row is missing, but"
        return f"{self.folder}: {lost}: {_listed(self.reasons)}; {_cure(self.folder, self.name)}"


def open_published(folder: OutputFolder) -> PublishedFolder:
    """Reads every part against its sha256. Raises UserError where nothing is planned yet, or its rows are damaged."""
    folder.refuse_links()
    records, damaged_records = inspect_records(folder)
    name = records[-1].name if records else None
    reasons = list(map(str, damaged_records))
    plan_id = shown_plan(folder, records)
    running = running_record(folder, records)
    if plan_id is None and running is not None:
        raise UserError(f"{folder}: {running.run_id} is running, and has no plan yet; try again")
    if plan_id is None:
        reasons += [f"plan/{one.published_plan} is gone" for one in records if one.published_plan is not None]
        said = f": {_listed(reasons)}; {_cure(folder, name)}" if reasons else "; name the output folder of a run"
        raise UserError(f"{folder}: holds no results{said}")
    gone = {one.published_plan for one in records if one.published_plan is not None} - {*plan_ids(folder)}
    reasons += [f"plan/{newer} is gone" for newer in sorted(gone) if newer > plan_id]  # what is shown is older
    try:
        check_plan_file(folder, plan_id, ROWS)
    except DamagedError as problem:
        if problem.path.name == ROWS:
            raise UserError(f"{folder}: {problem}; {_cure(folder, name)}") from None
        reasons.append(str(problem))
    manifests, damaged = inspect_manifests(folder)
    reasons += [f"shard {shard_of(path)}: {problem}" for path, problem in damaged.items()]
    running = running_record(folder, records)
    if running is None:
        reasons += _without_manifest(folder, plan_id)
    run_id = None if running is None else running.run_id
    return PublishedFolder(folder, plan_id, name, tuple(manifests), tuple(reasons), run_id)


def shown_plan(folder: OutputFolder, records: Sequence[RunRecord], *, before: str | None = None) -> str | None:
    """The newest publication's, or the one whose run has lost its record if that is newer: it may have been published.

    Where nothing is published yet, what is planned. With `before`, what was shown before that plan.
    """
    plans = [one for one in plan_ids(folder) if before is None or one < before]
    published = {one.published_plan for one in records}
    known = {plan_id_of(one.run_id) for one in records}
    return max((one for one in plans if one in published or one not in known), default=max(plans, default=None))


def running_record(folder: OutputFolder, records: Sequence[RunRecord]) -> RunRecord | None:
    """The run that has the folder now: not one that died, whatever its record says."""
    holder = folder.holder()
    if holder is None:
        return None
    return next((one for one in records if one.status == RUNNING and one.holder == holder.token), None)


def _without_manifest(folder: OutputFolder, plan_id: str) -> list[str]:
    """The plan's shards that are not scored yet, or whose manifest is gone."""
    try:
        shards = load_plan(folder, plan_id).shards
    except DamagedError:
        return []
    return [
        f"shard {shard.shard_id}: no manifest"
        for shard in shards
        if not manifest_path(folder, plan_id, shard.shard_id).exists()
    ]


def _listed(reasons: Sequence[str]) -> str:
    more = f" and {len(reasons) - _MOST_REASONS:,} more" if len(reasons) > _MOST_REASONS else ""
    return (", ".join(reasons[:_MOST_REASONS]) or "the manifests of their shards are gone") + more


def _cure(folder: OutputFolder, name: str | None) -> str:
    whose = f" with the job {name!r}" if name is not None else ""
    return f"mend it{whose}: trunkline score JOB --output {folder}"
