"""Plans on disk: a folder that appears whole, with `plan.json`, the rows, the requests a shard and the nodes."""

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.failpoint import failpoint
from engine.plan import PlanSummary, Shard
from tasks.storage.commit import fsync, sha256_of
from tasks.storage.damage import DamagedError, tell
from tasks.storage.file_names import PLAN
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run_record import COMPLETED, read_records
from tasks.storage.stored_json import read_json, stage_json

ROWS, REQUESTS, NODES = "rows.parquet", "requests.parquet", "nodes.parquet"
FILES = (ROWS, REQUESTS, NODES)
# Not every plan has it: of each row, a digest of what its request was made of.
DIGESTS = "digests.parquet"

_NAME = re.compile(r"plan-\d{6,}-[0-9a-f]{6}", re.ASCII)


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A plan that is on the disk. Of its `unique` requests `pending` are in its shards, `committed` had an answer in
    the output folder before it, and `from_store` in the scoring store.

    `layout_id` names the numbering of its nodes: shards of one layout share the KV of a node. `row_digests` is the
    key of those in `digests.parquet`; None for a plan without.
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
    full: bool = False
    from_store: int = 0
    row_digests: str | None = None

    @property
    def equal_rows(self) -> int:
        """Rows whose request is another row's too."""
        return self.rows - self.rejected - self.unique

    @property
    def said_of_requests(self) -> str:
        """What becomes of them, in words."""
        again = "; all are scored again" if self.full else ""
        counts = {"done before": self.committed, "found in the store": self.from_store, "to score": self.pending}
        return ", ".join(f"{count:,} {said}" for said, count in counts.items()) + again


def plan_folder(folder: OutputFolder, plan_id: str) -> Path:
    return folder.plans / plan_id


def plan_id_of(run_id: str) -> str:
    return run_id.replace("run-", "plan-")


def store_plan(folder: OutputFolder, planned: StoredPlan, job: Mapping[str, Any], staged: Path) -> None:
    """Adds `plan.json` to a staged folder that holds the other files, and gives it its final name."""
    files = FILES if planned.row_digests is None else (*FILES, DIGESTS)
    digests = {name: sha256_of(staged / name) for name in files}
    stage_json(staged / PLAN, {**asdict(planned), "job": job, "files": digests})
    for path in staged.iterdir():
        fsync(path)
    fsync(staged)
    failpoint("plan.staged")
    folder.commit_plan(staged, plan_folder(folder, planned.plan_id))
    failpoint("plan.renamed")
    fsync(folder.plans)


def load_plan(folder: OutputFolder, plan_id: str) -> StoredPlan:
    """Raises DamagedError where `plan.json` is not what a run wrote there."""
    return _load(folder, plan_id)[0]


def planned_job(folder: OutputFolder, plan_id: str) -> dict[str, Any]:
    """The job that a plan was made for, as its file says it. Raises DamagedError like `load_plan`."""
    job = read_json(plan_folder(folder, plan_id) / PLAN).get("job")
    return job if isinstance(job, dict) else {}


def check_plan_file(folder: OutputFolder, plan_id: str, name: str) -> None:
    """Raises DamagedError where one of a plan's `FILES`, or `plan.json`, is not what a run wrote there."""
    path = plan_folder(folder, plan_id) / name
    digest = _load(folder, plan_id)[1].get(name)
    if not path.is_file() or path.is_symlink():
        raise DamagedError(path, "is gone")
    if sha256_of(path) != digest:
        raise DamagedError(path, "is damaged: its bytes are not those that were written")


def verify_plans(folder: OutputFolder) -> None:
    """Sets plans aside of which anything is damaged, as only the lock's holder may: the rows are then read again."""
    for plan_id in plan_ids(folder):
        try:
            for name in {*FILES, *_load(folder, plan_id)[1]}:
                check_plan_file(folder, plan_id, name)
        except DamagedError as problem:
            tell(problem, "the rows will be planned again")
            folder.set_aside(plan_folder(folder, plan_id))


@lru_cache(maxsize=4)
def layout_of(folder: OutputFolder, plan_id: str) -> str:
    """A plan's `layout_id`; read once, for a plan's text holds all its shards."""
    return load_plan(folder, plan_id).layout_id


def find_open_plan(
    folder: OutputFolder, fingerprint: str, source_digest: str, *, retry_failed: bool, full: bool
) -> str | None:
    """The plan that an unfinished run left, if it is the newest and says what a run with these would plan."""
    newest = max(plan_ids(folder), default=None)
    if newest is None:
        return None
    planned = load_plan(folder, newest)
    same = (planned.fingerprint, planned.source_digest, planned.retry_failed, planned.full)
    finished = {record.plan_id for record in read_records(folder) if record.status == COMPLETED}
    wanted = (fingerprint, source_digest, retry_failed, full)
    return newest if same == wanted and newest not in finished else None


def find_plan_of_digests(folder: OutputFolder, key: str) -> str | None:
    """The newest plan whose rows have digests of this key."""
    return next((name for name in reversed(plan_ids(folder)) if load_plan(folder, name).row_digests == key), None)


def remove_other_plans(folder: OutputFolder, kept: Collection[str | None]) -> None:
    """Removes all plans but those: no view that is open reads their rows."""
    for plan_id in plan_ids(folder):
        if plan_id not in kept:
            folder.remove(plan_folder(folder, plan_id))


def plan_ids(folder: OutputFolder) -> Sequence[str]:
    """Oldest first."""
    return sorted(path.name for path in folder.plans.glob("plan-*") if _NAME.fullmatch(path.name))


def _load(folder: OutputFolder, plan_id: str) -> tuple[StoredPlan, dict[str, str]]:
    """The plan, and its files' digests by name."""
    path = plan_folder(folder, plan_id) / PLAN
    if path.parent.is_symlink():
        raise DamagedError(path.parent, "is a link")
    content = read_json(path)
    with suppress(TypeError, KeyError):
        content.pop("job")
        digests = content.pop("files")
        summary = PlanSummary(**content.pop("summary"))
        shards = tuple(Shard(**shard) for shard in content.pop("shards"))
        planned = StoredPlan(summary=summary, shards=shards, **content)
        if planned.plan_id == plan_id:
            return planned, digests
    raise DamagedError(path, "is another version's, or another plan's")


def tokens_an_answer(requests: Path) -> float:
    """The most that an answer of a plan's requests may have, on average; 0 where they generate nothing."""
    most = pq.read_table(requests, columns=["max_tokens"]).column(0)
    return pc.mean(most.filter(pc.greater(most, 0))).as_py() or 0.0
