"""Plans on disk: a folder that appears whole, with `plan.json`, the rows, the requests a shard and the nodes."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from shutil import rmtree
from typing import Any

from engine.plan import PlanSummary, Shard
from tasks.commit import fsync, stage_json
from tasks.failpoint import failpoint
from tasks.output_folder import OutputFolder
from tasks.run import Run
from tasks.run_record import COMPLETED, read_records

ROWS, REQUESTS, NODES, PLAN = "rows.parquet", "requests.parquet", "nodes.parquet", "plan.json"


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan that is on the disk. `pending` requests are in its shards; `committed` ones were scored before it.

    `layout_id` names the numbering of its nodes: shards of one layout share the KV of a node.
    """

    plan_id: str
    layout_id: str
    run_id: str
    fingerprint: str
    source_digest: str
    retry_failed: bool
    rows: int
    rejected: int
    unique: int
    committed: int
    pending: int
    summary: PlanSummary
    text: str
    shards: tuple[Shard, ...]


def plan_folder(folder: OutputFolder, plan_id: str) -> Path:
    return folder.plans / plan_id


def store_plan(run: Run, planned: Planned, staged: Path) -> None:
    """Adds `plan.json` to a staged folder that holds the other files, and gives it its final name."""
    stage_json(staged / PLAN, {**asdict(planned), "job": run.job.model_dump(mode="json")})
    for path in staged.iterdir():
        fsync(path)
    fsync(staged)
    failpoint("plan.staged")
    os.rename(staged, plan_folder(run.folder, planned.plan_id))
    failpoint("plan.renamed")
    fsync(run.folder.plans)


def load_plan(folder: OutputFolder, plan_id: str) -> Planned:
    content = json.loads((plan_folder(folder, plan_id) / PLAN).read_bytes())
    return _from_json(content)


@lru_cache(maxsize=4)
def layout_of(folder: OutputFolder, plan_id: str) -> str:
    """A plan's `layout_id`; read once, for a plan's text holds all its shards."""
    return load_plan(folder, plan_id).layout_id


def find_open_plan(run: Run, source_digest: str) -> str | None:
    """The plan that an unfinished run left, if it is the newest and says what this run would plan."""
    newest = max(_plan_ids(run.folder), default=None)
    if newest is None:
        return None
    try:
        planned = load_plan(run.folder, newest)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    same = (planned.fingerprint, planned.source_digest, planned.retry_failed)
    finished = {record.plan_id for record in read_records(run.folder) if record.status == COMPLETED}
    is_open = same == (run.fingerprint, source_digest, run.retry_failed) and newest not in finished
    return newest if is_open else None


def remove_other_plans(folder: OutputFolder, plan_id: str) -> None:
    """The published tables read this plan's rows alone."""
    for other in _plan_ids(folder):
        if other != plan_id:
            rmtree(plan_folder(folder, other))


def _plan_ids(folder: OutputFolder) -> Sequence[str]:
    return sorted(path.name for path in folder.plans.glob("plan-*") if path.is_dir())


def _from_json(content: Any) -> Planned:
    content.pop("job")
    summary = PlanSummary(**content.pop("summary"))
    shards = tuple(Shard(**shard) for shard in content.pop("shards"))
    return Planned(summary=summary, shards=shards, **content)
