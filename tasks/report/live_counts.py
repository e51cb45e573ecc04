"""What of a run is committed so far."""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.report.totals import read_totals
from tasks.report.views import open_views
from tasks.storage.manifests import read_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run_end import own_counts
from tasks.storage.shard_manifest import ShardManifest
from tasks.storage.stored_plan import StoredPlan


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of the plan that have a committed end, `row_errors` of them errors; the rest is what the run committed."""

    rows_done: int
    row_errors: int
    scored: int
    errors: int
    computed_prompt_tokens: int
    generated_tokens: int


class LiveCounts:
    """Counts of a run on `planned`. What was committed before it is counted once, by SQL; what comes, by manifests."""

    def __init__(self, folder: OutputFolder, run_id: str, planned: StoredPlan) -> None:
        self._folder = folder
        self._run_id = run_id
        self._plan_id = planned.plan_id
        before = read_manifests(folder)
        ended, errors = _ended_rows(folder, before, planned)
        rows, row_errors = self._sums(before)
        # Rows that have an end for another reason than this plan's shards.
        self._others = (ended - rows, errors - row_errors)

    def read(self) -> Counts:
        manifests = read_manifests(self._folder)
        rows, row_errors = self._sums(manifests)
        own = own_counts(manifests, self._run_id)
        return Counts(
            rows_done=self._others[0] + rows,
            row_errors=self._others[1] + row_errors,
            scored=own["scored"],
            errors=own["errors"],
            computed_prompt_tokens=own["computed_prompt_tokens"],
            generated_tokens=own["generated_tokens"],
        )

    def _sums(self, manifests: Sequence[ShardManifest]) -> tuple[int, int]:
        """Rows of the plan's shards, and those of them that are errors."""
        ours = [one for one in manifests if one.plan_id == self._plan_id]
        errors = (one.errors if one.row_errors is None else one.row_errors for one in ours)
        return sum(one.rows for one in ours), sum(errors)


def _ended_rows(folder: OutputFolder, manifests: Sequence[ShardManifest], planned: StoredPlan) -> tuple[int, int]:
    """The plan's rows that have an end, and those of them that are errors."""
    if not manifests:
        return planned.rejected, planned.rejected
    with open_views(folder, planned.plan_id, manifests) as connection:
        totals = read_totals(connection)
    return totals.results + totals.errors, totals.errors
