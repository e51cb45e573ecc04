"""What a report says of an output folder: read by SQL that counts, so that a million rows cost no more than ten."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import duckdb

from engine.plan import PlanSummary
from tasks.report.totals import Savings, Totals
from tasks.storage.damage import DamagedError
from tasks.storage.interruptible import fetch_all
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run_progress import read_progress
from tasks.storage.run_record import RunRecord, read_records
from tasks.storage.statements import statement
from tasks.storage.step_curve import StepCurve, read_curve
from tasks.storage.stored_plan import NODES, StoredPlan, load_plan, plan_folder, planned_job

MOST_NODES = 400
COLUMNS = 240
# A node of less than such a part of the requests could not be seen.
NODE_COLUMNS = 500
MOST_SHARDS = 8
MOST_ANSWERS = 20
MOST_ERRORS, ERRORS_OF_A_KIND = 12, 3
MOST_RUNS = 8
# Differences of log-likelihoods, or of logits, which people look at.
MARGINS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows of a task with one answer; the probability of their label, and the median of `min_margin`, where known."""

    task: str
    answer: str
    rows: int
    mean_probability: float | None
    median_margin: float | None


@dataclass(frozen=True, slots=True)
class SlowShard:
    """A committed shard, from 1; `expected_seconds` is the plan's, None where that is another plan's."""

    number: int
    requests: int
    errors: int
    seconds: float
    prompt_tokens: int
    computed_prompt_tokens: int
    generated_tokens: int
    expected_seconds: float | None


@dataclass(frozen=True, slots=True)
class ErrorExample:
    error_type: str
    custom_id: str
    message: str


@dataclass(frozen=True, slots=True)
class SharedNode:
    """Prompt tokens `[start, end)` that requests `[first, first + num_requests)`, as they run, have in common."""

    first: int
    num_requests: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class PromptTree:
    """The plan's requests as they run: nodes that stand for most tokens, wide enough to be seen; and in each of
    `COLUMNS` parts of them, how long prompts are in the mean, and the beginning that they share with another.
    """

    requests: int = 0
    longest: int = 0
    nodes: tuple[SharedNode, ...] = ()
    lengths: tuple[float, ...] = ()
    shared: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class RunTokens:
    """Of what one run committed: prompt tokens as the rows have them, of `unique` prompts, planned and computed."""

    requests: int
    prompt: int
    unique: int
    planned: int
    computed: int
    generated: int
    saved_fraction: float
    ideal_saved_fraction: float


@dataclass(frozen=True, slots=True)
class Facts:
    """`run` is the newest, `scoring` the newest that scored anything, whose are `tokens` and `curve`.

    `planned` is what that run was planned to take; None where its plan is gone. `seconds` are those of `scoring`.
    `error_types` are (name, rows), `margins` (bound, rows): rows nearer to another answer than that, None for no bound.
    """

    folder: OutputFolder
    run: RunRecord
    scoring: RunRecord
    runs: tuple[RunRecord, ...]
    job: dict[str, Any]
    plan: StoredPlan
    rows: int
    results: int
    errors: int
    error_types: tuple[tuple[str, int], ...]
    error_examples: tuple[ErrorExample, ...]
    answers: tuple[Answer, ...]
    margins: tuple[tuple[float | None, int], ...]
    slowest: tuple[SlowShard, ...]
    tree: PromptTree
    tokens: RunTokens
    planned: PlanSummary | None
    curve: StepCurve
    seconds: float | None

    @property
    def missing(self) -> int:
        return self.rows - self.results - self.errors

    @property
    def cost(self) -> float | None:
        """Of the scoring run, in whatever money its `price_per_hour` is in."""
        price = self.scoring.price_per_hour
        return None if price is None or self.seconds is None else price * self.seconds / 3600


def read_facts(folder: OutputFolder, plan_id: str, connection: duckdb.DuckDBPyConnection, totals: Totals) -> Facts:
    """Of what the views of `connection` show, which add up to `totals`.

    Raises DamagedError where the plan cannot be read, ValueError where no run is recorded.
    """
    records = read_records(folder)
    if not records:
        raise ValueError("its runs have lost their records")
    plan = load_plan(folder, plan_id)
    job: dict[str, Any] = {}
    with suppress(DamagedError):
        job = planned_job(folder, plan_id)
    ask = _Asking(connection)
    scored = max((run_id for run_id, one in totals.savings.items() if one.prompt), default=None)
    scoring = next((one for one in records if one.run_id == scored), records[-1])
    own = job.get("task", {}).get("type") or ""
    return Facts(
        folder=folder,
        run=records[-1],
        scoring=scoring,
        runs=tuple(records[-MOST_RUNS:]),
        job=job,
        plan=plan,
        rows=plan.rows,
        results=totals.results,
        errors=totals.errors,
        error_types=totals.error_types,
        error_examples=tuple(
            ErrorExample(*map(str, row)) for row in ask.all("error_examples", each=ERRORS_OF_A_KIND, most=MOST_ERRORS)
        ),
        answers=tuple(Answer(*row) for row in ask.all("answers_given", own=own, most=MOST_ANSWERS)),
        margins=tuple(ask.all("margin_counts", bounds=list(MARGINS))),
        slowest=_slowest(ask, plan),
        tree=_tree(ask, folder, plan),
        tokens=_tokens(ask, scoring.run_id, totals.savings.get(scoring.run_id, Savings())),
        planned=plan.summary if scoring.plan_id == plan_id else None,
        curve=read_curve(folder, scoring.run_id),
        seconds=_seconds(folder, scoring),
    )


@dataclass(frozen=True, slots=True)
class _Asking:
    connection: duckdb.DuckDBPyConnection

    def all(self, name: str, **values: object) -> list[Any]:
        return fetch_all(self.connection, statement(f"report/{name}"), values)


def _slowest(ask: _Asking, plan: StoredPlan) -> tuple[SlowShard, ...]:
    expected = {shard.index: shard.expected_seconds for shard in plan.shards}
    rows = ask.all("slowest_shards", plan_id=plan.plan_id, most=MOST_SHARDS)
    figures = ((row[0] + 1, *row[1:], expected.get(row[0])) for row in rows)
    return tuple(SlowShard(*one) for one in figures)


def _tree(ask: _Asking, folder: OutputFolder, plan: StoredPlan) -> PromptTree:
    path = str(plan_folder(folder, plan.plan_id) / NODES)
    columns = ask.all("prompt_lengths", nodes=path, columns=COLUMNS)
    if not columns:
        return PromptTree()
    mean_of = {column: (mean, mean_shared) for column, mean, mean_shared, _, _ in columns}
    filled = [(0.0, 0.0)]
    for column in range(COLUMNS):  # one where no node begins has more of the requests of the one before
        filled.append(mean_of.get(column, filled[-1]))
    lengths, shared = zip(*filled[1:], strict=True)
    nodes = ask.all("wide_nodes", nodes=path, most=MOST_NODES, columns=NODE_COLUMNS)
    return PromptTree(
        requests=columns[0][4],
        longest=max(most for _, _, _, most, _ in columns),
        nodes=tuple(SharedNode(*row) for row in nodes),
        lengths=lengths,
        shared=shared,
    )


def _tokens(ask: _Asking, run_id: str, of: Savings) -> RunTokens:
    [(requests, planned, computed, generated)] = ask.all("run_tokens", run_id=run_id)
    saved = (of.saved_fraction, of.ideal_saved_fraction)
    return RunTokens(requests, of.prompt, of.unique, planned, computed, generated, *saved)


def _seconds(folder: OutputFolder, run: RunRecord) -> float | None:
    """How long the run took, or takes until now."""
    if run.seconds is not None:
        return run.seconds
    curve = read_curve(folder, run.run_id)
    progress = read_progress(folder)
    known = [curve.seconds] if curve.points else []
    if progress is not None and progress.run_id == run.run_id:
        known.append(progress.seconds)
    return max(known, default=None)
