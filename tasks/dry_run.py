"""What a run would do and cost, without a model's weights and with nothing written to the output folder."""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.figures import figure
from engine.loop.step_budget import planning_config
from engine.machine.memory import MemoryNeed, memory_need
from engine.machine.place import places
from engine.machine.start_time import expected_loading, expected_starting
from engine.plan import PlanSummary, Shard, join
from tasks.answers_seen import AnswersSeen, earlier_answers
from tasks.deduplicate import PENDING, find_pending
from tasks.extract import extract_rows
from tasks.job.job import ScoringJob
from tasks.plan import plan_sections
from tasks.storage.open_folder import folder_of
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import make_run
from tasks.storage.stored_plan import tokens_an_answer


@dataclass(frozen=True, slots=True)
class PlanReport:
    """The plan is for the `pending` requests: those without an answer in the job's output folder, or in its store.

    `answer_tokens` are those that an answer becomes on average, as the job's earlier ones became, where there are any.
    """

    rows: int
    rejected: int
    unique: int
    committed: int
    from_store: int
    pending: int
    plan: PlanSummary
    shards: tuple[Shard, ...]
    text: str
    memory: MemoryNeed
    starting_seconds: float
    loading_seconds: float
    notes: tuple[str, ...]
    planned_for: str | None
    workers: int = 1
    ranks: int = 1
    most_answer_tokens: float = 0.0
    answer_tokens: float | None = None

    @property
    def expected_seconds(self) -> float:
        """From the command to its report; a run with nothing to score loads no model. Workers share the rest.

        Answers become as long as earlier ones, or without any as long as they may.
        """
        computing = self.plan.expected_seconds
        if self.answer_tokens is not None:
            computing -= self.plan.decode_seconds * (1 - self.answer_tokens / self.most_answer_tokens)
        return self.starting_seconds + self.loading_seconds + computing / self.workers

    def as_json(self) -> dict[str, Any]:
        """All figures, with those that follow from others; without the text."""
        saved = {name: getattr(self.plan, name) for name in ("saved_fraction", "ideal_saved_fraction")}
        content = asdict(self) | {"expected_seconds": self.expected_seconds, "memory_bytes": self.memory.total}
        return {name: value for name, value in content.items() if name != "text"} | {"plan": content["plan"] | saved}

    def __str__(self) -> str:
        before = f"{figure(self.starting_seconds + self.loading_seconds)} s of it starting and loading"
        lines = [
            f"rows              {self.rows:>14,}   {_rows_words(self.rows, self.rejected)}",
            f"unique requests   {self.unique:>14,}   {self._answered()}",
            self.text,
            f"  memory at most  {self.memory}",
            f"  expected time   {figure(self.expected_seconds):>12} s   {before}{self._answers()}",
        ]
        if self.workers > 1:
            lines.append(f"  workers         {self.workers:>14,}   each with as much memory, in a time that they share")
        if self.ranks > 1:
            lines.append(f"  ranks           {self.ranks:>14,}   devices that have a model in parts; memory is one's")
        if self.planned_for is not None:
            lines.append(f"  planned for     {self.planned_for}")
        return "\n".join(lines)

    def _answers(self) -> str:
        if self.answer_tokens is not None:
            return f"; answers of {figure(self.answer_tokens, 0)} tokens, as earlier ones"
        return "; answers as long as they may be" if self.plan.decode_seconds else ""

    def _answered(self) -> str:
        stored = f", {self.from_store:,} more in the store" if self.from_store else ""
        return f"{self.committed:,} have an answer already{stored}"


def _rows_words(rows: int, rejected: int) -> str:
    return f"{rejected:,} cannot be scored" if rows else "the source has no rows"


def plan_job(
    job: ScoringJob, device: str | None = None, *, retry_failed: bool = False, full: bool = False
) -> PlanReport:
    """For this machine, or for a GPU that `kernels.known_gpus` knows by this name. Raises UserError as a run would."""
    with tempfile.TemporaryDirectory(prefix="trunkline-") as scratch:
        folder = OutputFolder(Path(scratch))
        folder.create()
        run = make_run(job, folder, retry_failed=retry_failed, full=full, not_here=device)
        extracted = extract_rows(run)
        earlier = folder_of(job).look()
        found = find_pending(run, extracted, earlier)
        config = planning_config(run.model, run.config, run.device)
        is_elsewhere = device is not None or job.cluster is not None
        workers = max(1, job.engine.workers) if is_elsewhere else len(places(run.config, job.engine.workers))
        sections = plan_sections(run, found.folder / PENDING, config, workers)
        outlines = [section.plan.outline for section in sections]
        outline = join(outlines, config.kv_cache_memory)
        most = tokens_an_answer(found.folder / PENDING)
        seen = earlier_answers(run, earlier) if most else []
    memory = memory_need(run.model, run.shape, config, run.device)
    loading = expected_loading(memory.weights, run.model, run.config, run.device) if found.pending else 0.0
    return PlanReport(
        rows=found.rows,
        rejected=found.rejected,
        unique=found.unique,
        committed=found.committed,
        from_store=found.from_store,
        pending=found.pending,
        plan=outline.summary,
        shards=outline.shards,
        text=str(outline),
        memory=memory,
        starting_seconds=expected_starting(),
        loading_seconds=loading,
        notes=extracted.notes,
        planned_for=None if run.device.known is None else f"{run.device.label}, by its data sheet",
        workers=workers,
        ranks=run.config.tensor_parallel,
        most_answer_tokens=most,
        answer_tokens=min(AnswersSeen(seen).lengths(()).mean(round(most)), most) if seen else None,
    )
