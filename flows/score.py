"""The flow: a table of prompts in, a folder of results out."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BeforeValidator, Field

from engine.errors import EngineClosedError, EngineLostError, UserError
from engine.loop.plan_cost import plan_cost
from engine.loop.step_budget import known_step_tokens
from flows.artifacts import RunPage
from flows.dataset import publish
from flows.event_loops import stop_at_exit
from flows.in_flight import run_in_flight
from flows.lost_console import outlive_console
from flows.progress import Meter, Progress, Waits, Work
from flows.report import RunReport
from flows.run_control import RunControl, stopped
from flows.run_events import announced_run
from flows.telemetry.json_logs import json_logs
from flows.telemetry.otel import Telemetry, run_telemetry
from flows.workers import open_workers
from tasks.answers_seen import AnswersSeen, earlier_answers
from tasks.deduplicate import deduplicate
from tasks.dispatch import SHARDS_IN_FLIGHT, Dispatch, Turn
from tasks.error_limit import ErrorLimit
from tasks.extract import Extracted, extract
from tasks.infer import ShardDone, infer
from tasks.job.job import MAX_WORKERS, ScoringJob
from tasks.job.job_file import load_job, parse_job
from tasks.plan import StoredPlan, plan
from tasks.report.used_folders import remember_folder
from tasks.row_names import refuse_rejected
from tasks.run_failed import EngineKeepsDyingError, ErrorRowError, RunFailedError
from tasks.storage.bucket_errors import LeaseLostError
from tasks.storage.manifests import read_manifests
from tasks.storage.run import Run, open_run
from tasks.storage.run_record import update_record
from tasks.storage.stop_request import RunStoppedError
from tasks.storage.stored_plan import REQUESTS, ROWS, plan_folder, tokens_an_answer
from tasks.workers import Workers

# Each shard has had its own retries by then: the cause is not in the shards.
FAILED_SHARDS_ALLOWED = 3

Log = logging.Logger | logging.LoggerAdapter[Any]

stop_at_exit()


def _parsed(given: object) -> object:
    """A job's keys as a job file has them, with lines as its; pydantic's own would name our functions."""
    return parse_job(given, "job") if isinstance(given, dict) else given


@flow(
    name="trunkline-score",
    flow_run_name=lambda: f"score-{_name(flow_run.parameters['job'])}",
    task_runner=ThreadPoolTaskRunner(max_workers=SHARDS_IN_FLIGHT * MAX_WORKERS),  # type: ignore[arg-type]
    persist_result=False,
    result_serializer="json",  # Prefect writes the exception of a failed run all the same, by default as a pickle
)
def score(
    job: Annotated[ScoringJob | str, BeforeValidator(_parsed)],
    retry_failed: bool = False,
    full: bool = False,
    wait: Annotated[float, Field(ge=0)] = 0.0,
) -> RunReport:
    """Scores every row of the job's source that has no committed result yet, and publishes all of them.

    Args:
        job: what to score, with which model, and where the results go, as a job or a mapping of its keys, or the path
            of a job file; relative paths start at the working directory.
        retry_failed: score the rows again that ended as errors.
        full: score all rows again, whatever the output folder and the job's store have of them.
        wait: seconds to wait for a run that has the output folder; with 0 this one is refused at once.

    Raises:
        UserError: the job, its source or its model cannot be used as given.
        RunFailedError: some rows are still without an end; the same call continues.
        RunStoppedError: somebody asked the run to end; the same call continues.
    """
    outlive_console()
    job = load_job(job) if isinstance(job, str) else job
    try:
        with json_logs(), announced_run(open_run(job, retry_failed, full=full, wait=wait)) as run:
            return _score(run)
    except RunStoppedError as stopped:
        # Nobody's failure: Prefect neither tries again nor tells those who hear of failed runs.
        return Cancelled(message=str(stopped), data=stopped)  # type: ignore[return-value]


def _score(run: Run) -> RunReport:
    log = get_run_logger()
    with run_telemetry(run) as telemetry, open_workers(run) as workers, RunControl(run, workers) as control:
        remember_folder(run.folder)
        with control.stoppable():
            planned = _plan(run, workers, control, log, telemetry)
        log.info(
            "%s rows: %s that cannot be scored, %s equal to another row; of %s requests %s\n%s",
            f"{planned.rows:,}",
            f"{planned.rejected:,}",
            f"{planned.equal_rows:,}",
            f"{planned.unique:,}",
            planned.said_of_requests,
            planned.text,
        )
        control.count(planned)
        return ShardRunner(run, planned, workers, control, log, telemetry).run()


def _plan(run: Run, workers: Workers, control: RunControl, log: Log, telemetry: Telemetry) -> StoredPlan:
    """The steps up to the plan."""
    control.tell(Progress("reading rows"))
    if _loads_while_it_reads(run):
        workers.start()
    with telemetry.step("extract"):
        extracted = extract(run)
    _log_notes(log, extracted)
    control.tell(Progress("finding equal requests", extracted.rows))
    with telemetry.step("deduplicate"):
        deduplicated = deduplicate(run, extracted)
    if deduplicated.pending:
        workers.start()
    control.tell(Progress("planning", extracted.rows))
    with telemetry.step("plan"):
        return plan(run, deduplicated, workers)


def _loads_while_it_reads(run: Run) -> bool:
    """Whether something is to be computed whatever the rows are, as nothing has been, and nobody minds a model that
    waits for them: a GPU's memory may be another run's, and what a load measures is not measured beside others.
    """
    is_own_cpu = run.job.runner == "local" and run.device.name == "cpu"
    if not is_own_cpu or run.store is not None or read_manifests(run.folder):
        return False
    return known_step_tokens(run.model, run.config, run.device) is not None


def _name(job: ScoringJob | str) -> str:
    return Path(job).stem if isinstance(job, str) else job.name


class ShardsFailedError(RunFailedError):
    """Shards failed for good; what was committed is published.

    Cure: the line has the last shard's reason; mend that, and run the same command.
    """


class ShardRunner:
    """Runs a plan's shards, tells how far they are, and publishes what is committed."""

    def __init__(
        self,
        run: Run,
        planned: StoredPlan,
        workers: Workers,
        control: RunControl,
        log: Log,
        telemetry: Telemetry,
    ) -> None:
        self._run = run
        self._control = control
        self._planned = planned
        self._workers = workers
        self._errors = ErrorLimit(run.job, rows=planned.rows, rejected=planned.rejected, pending=planned.pending)
        answers = AnswersSeen(earlier_answers(run, run.folder))
        self._dispatch = Dispatch(planned.shards, workers, self._errors, run.job.max_engine_deaths, answers)
        self._before = workers.totals()
        self._log = log
        self._telemetry = telemetry
        self._page = RunPage(artifact_key(run.job.name), log)
        summary = planned.summary
        requests = plan_folder(run.folder, planned.plan_id) / REQUESTS
        # Equal rows share a request, so the rows already done are only known in proportion.
        pending = planned.pending / planned.unique if planned.unique else 0.0
        self._meter = Meter(
            Work(
                rows=planned.rows,
                rows_done=planned.rows - round((planned.rows - planned.rejected) * pending),
                requests=summary.requests,
                prefill=summary.computed_tokens,
                label=summary.label_tokens,
                decode=summary.max_decode_tokens,
                most=tokens_an_answer(requests) if summary.max_decode_tokens else 0.0,
                prices=plan_cost(run.model, run.shape, run.config, run.device).prices(),
            ),
            answers,
        )
        self._done: list[ShardDone] = []
        self._failures: list[Exception] = []
        self._progress = Progress("scoring", planned.rows)
        self._waited_for: str | None = None
        self._waits = Waits()

    def run(self) -> RunReport:
        start = time.monotonic()
        try:
            self._check_rejected()
            run_in_flight(self._dispatch.next, self._submit, self._finished, self._tick)
            if self._dispatch.left and not self._failures and not self._control.asked:
                raise EngineLostError("no worker is left")
        except BaseException as problem:
            # Whoever stops the run does not want to wait for its shards, but for what they have to commit.
            if not isinstance(problem, Exception):
                self._run.folder.hurry()
            self._workers.close()
            self._dispatch.commits.close()
            raise
        finally:
            seconds = time.monotonic() - start - self._waits.seconds
            self._record_limit()
            self._control.tell(replace(self._progress, stage="publishing", seconds_left=None))
            self._control.write_curve()
            with self._telemetry.step("publish"):
                published = publish(self._run, self._planned.plan_id)
        report = RunReport(
            job=self._run.job.name,
            run_id=self._run.run_id,
            folder=self._run.root,
            published=published,
            shards=len(self._planned.shards),
            scored_rows=sum(done.rows for done in self._done if not done.skipped),
            rejected=self._planned.rejected,
            equal_rows=self._planned.equal_rows,
            done_before=self._planned.committed,
            from_store=self._planned.from_store,
            url=None if self._run.folder.bucket is None else str(self._run.folder),
            seconds=seconds,
            waited_seconds=self._waits.seconds,
        )
        self._page.close(report)
        if self._control.asked and published.missing:
            raise stopped(published.rows - published.missing, published.rows)
        if self._failures:
            raise ShardsFailedError(
                f"{len(self._failures)} shards failed, {published.missing:,} rows have no result yet "
                f"(last error: {self._failures[-1]})"
            ) from self._failures[-1]
        if self._errors.ends_at_first and published.errors:
            raise ErrorRowError(f"{published.errors:,} rows are errors of an earlier run, and on_error is fail")
        return report

    def _check_rejected(self) -> None:
        """Raises RunFailedError, before a row is computed, where rows that were rejected are not allowed."""
        if self._errors.ends_at_first:
            refuse_rejected(plan_folder(self._run.folder, self._planned.plan_id) / ROWS)
        self._errors.check_rejected()

    def _record_limit(self) -> None:
        share = (self._workers.totals() - self._before).limit_share
        if share is not None:
            update_record(self._run.folder, self._run.run_id, limit_share=round(share, 3))

    def _submit(self, turn: Turn) -> PrefectFuture[Any]:
        # Without tags: for each of them a task asks the server for a slot, so that one that is away would end the run.
        here = infer.with_options(task_run_name=f"shard-{turn.shard.index + 1}-of-{len(self._planned.shards)}")
        return here.submit(self._run, self._planned.plan_id, turn.shard, turn.worker, turn.heeds)

    def _finished(self, turn: Turn, future: PrefectFuture[Any]) -> bool:
        self._dispatch.ended(turn)
        try:
            done: ShardDone = future.result()
        except (EngineLostError, EngineKeepsDyingError) as problem:
            if not self._dispatch.move(turn, problem):
                raise
            return True
        except (RunFailedError, LeaseLostError, UserError):
            raise  # another shard would say the same
        except Exception as error:
            if self._control.asked and isinstance(error, EngineClosedError):
                return False
            self._failures.append(error)
            self._telemetry.failed_shard(turn.shard.shard_id, error)
            self._log.error("shard %s failed: %s", turn.shard.shard_id, error)
            return len(self._failures) < FAILED_SHARDS_ALLOWED
        self._done.append(done)
        self._telemetry.shard(done)
        if done.skipped:
            self._meter.skip(turn.shard, done.rows)
        self._log.info(
            "shard %d of %d: %s requests, %d errors, %.1f s",
            done.index + 1,
            len(self._planned.shards),
            f"{done.requests:,}",
            done.errors,
            done.seconds,
        )
        return True

    def _tick(self) -> None:
        stage = self._workers.stage if self._planned.pending else None
        if stage is not None:
            self._meter.restart()
        errors = self._planned.rejected + sum(done.errors for done in self._done)
        engines = len(self._workers.each())
        read = self._meter.read(self._workers.totals() - self._before, max(engines, 1))
        self._progress = replace(read, errors=errors)
        if stage is not None:
            self._progress = replace(self._progress, stage=stage)
        holder = self._workers.waiting_for
        self._waits.look(holder)
        if holder is not None:
            self._progress = replace(self._progress, stage=f"waiting for {holder}", waiting_for=holder)
            if holder != self._waited_for:
                self._log.info("%s has %s: waiting for it to end", holder, self._run.device.label)
        self._waited_for = holder
        self._control.tell(self._progress)
        now = self._progress
        self._telemetry.progress(now.computed, now.rows, now.rows_done, now.tokens_per_second, engines)
        self._page.progress(self._progress)


def artifact_key(name: str) -> str:
    """Prefect takes lower-case letters, digits and dashes."""
    return "trunkline-" + "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())


def _log_notes(log: Log, extracted: Extracted) -> None:
    for note in extracted.notes:
        log.info("%s", note)
