"""`trunkline score`: the flow under a progress bar, then what came out."""

import atexit
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from engine.errors import EngineDeadError, EngineLostError, UserError
from engine.machine.start_time import note_starting
from flows.orphans import end_orphans_with_me
from flows.progress_bar import progress_bar, time_words
from flows.report import RunReport
from flows.run_events import send_events
from flows.score import score
from flows.stopping import stopping
from flows.temporary_server import start_server
from flows.terminal_text import as_text
from flows.workers import begun_process
from tasks.job.job import ScoringJob
from tasks.run_failed import RunFailedError
from tasks.storage.bucket_errors import BucketUnavailableError, LeaseLostError
from tasks.storage.stop_request import RunStoppedError
from tasks.transient import OUTSIDE

STOPPED = 3

Tell = Callable[[RunReport, Console], None]


def run_job(
    job: ScoringJob,
    *,
    retry_failed: bool,
    full: bool = False,
    wait: float = 0.0,
    trace: Path | None = None,
    then: Tell | None = None,
) -> NoReturn:
    """Runs the flow in this process, prints its report and ends the process; `then` has the last words.

    Exit codes: 1 where rows are left without an end, 2 for what the user can mend, 3 where `trunkline stop` ended it,
    128 + N where signal N did.
    """
    messages = Console(stderr=True)
    logging.raiseExceptions = False  # a Prefect server that is away is no news for the terminal
    end_orphans_with_me()
    code = 0
    with stopping(lambda signal: _stop(messages, signal)) as stop:
        try:
            with begun_process(trace):
                flow = partial(score, job, retry_failed=retry_failed, full=full, wait=wait)
                _run(flow, messages, then or tell_next_steps)
        except KeyboardInterrupt:
            stop()
        except RunStoppedError as error:
            code = _say(messages, str(error), STOPPED)
        except (RunFailedError, LeaseLostError) as error:
            code = _say(messages, f"{error}; the same command continues", 1)
        except UserError as error:
            code = _say(messages, str(error), 2)
        except OUTSIDE as error:
            said = str(error).strip().partition("\n")[0]
            kind = (
                ""
                if isinstance(error, EngineDeadError | EngineLostError | BucketUnavailableError)
                else f"{type(error).__name__}: "
            )
            code = _say(messages, f"{kind}{said}; the same command continues", 1)
    leave(code)


def _run(flow: Callable[[], RunReport], messages: Console, then: Tell) -> None:
    with progress_bar(messages), logs_told(messages):
        server = start_server()
        if server is not None:
            server.wait_until_ready()
        note_starting(_seconds_since_command())
        report = flow()
    console = Console()
    print_report(report, console, _seconds_since_command())
    then(report, console)


@contextmanager
def logs_told(messages: Console) -> Iterator[None]:
    """`messages` tells too what a run reads otherwise than it may be meant, sets aside, waits for, cannot compile."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.print(  # type: ignore[method-assign]
        as_text(f"trunkline: {record.getMessage()}"), soft_wrap=True
    )
    names = (
        "tasks.extract",
        "tasks.shard_scorer",
        "tasks.dispatch",
        "tasks.storage.bucket_folder",
        "tasks.storage.damage",
        "tasks.storage.lease",
        "tasks.storage.output_folder",
        "tasks.store.share",
        "kernels",
    )
    logs = [logging.getLogger(name) for name in names]
    for log in logs:
        log.addHandler(handler)
    try:
        yield
    finally:
        for log in logs:
            log.removeHandler(handler)


def _seconds_since_command() -> float:
    return time.time() - psutil.Process().create_time()


def _say(messages: Console, words: str, code: int) -> int:
    messages.print(as_text(f"trunkline: {' '.join(words.split())}"), soft_wrap=True)
    return code


def _stop(messages: Console, signal: int) -> NoReturn:
    """At once: Prefect's exit functions would wait for its server, which `flows.orphans` ends."""
    messages.show_cursor()
    _say(messages, "stopped; the same command continues", 128 + signal)
    os._exit(128 + signal)


def leave(code: int) -> NoReturn:
    """Ends the process after its exit functions, one of which stops Prefect's server; it gets its logs before.

    Taking the interpreter apart is left out: Prefect keeps DuckDB's module alive to the end, of which its binding
    complains over dozens of lines.
    """
    send_events()
    logging.shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def print_report(report: RunReport, console: Console, seconds: float) -> None:
    """The table of outcomes, and the run's figures."""
    outcomes = report.outcomes()
    if outcomes:
        console.print(as_text(f"{report.job}, {report.run_id}"))
    for one in outcomes:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        name, value = one.heads
        table.add_column(name)
        table.add_column(value, overflow="fold")
        for name, value in one.rows:
            table.add_row(as_text(name), as_text(value))
        console.print(table)
    facts = Table(box=None, show_header=False, pad_edge=False)
    places = [("results", report.place)] + ([("report", str(report.page))] if report.page.is_file() else [])
    for name, value in [*report.facts(), ("from the command", time_words(seconds)), *places]:
        facts.add_row(as_text(name), as_text(value))
    console.print(facts)
    console.print()


def tell_next_steps(report: RunReport, console: Console) -> None:
    for line in next_steps(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def next_steps(report: RunReport) -> list[str]:
    """What a person types next, ready to paste."""
    steps = ['trunkline sql "select * from results limit 5"', 'trunkline sql "select * from prefix_savings"']
    if report.published.errors:
        steps.append('trunkline sql "select custom_id, error_type, error_message from errors"')
    return ["Next:", *(f"  {step}" for step in steps)]
