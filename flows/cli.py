"""The command `trunkline`."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from engine.errors import UserError
from flows.options import (
    AdmissionPolicy,
    Full,
    JobFile,
    OrderPolicy,
    Output,
    ReportFormat,
    RetryFailed,
    RunFormat,
    Settings,
    SharingPolicy,
)
from flows.sql_format import Format
from flows.store_commands import store_app

# The bar says it on the terminal, and Prefect keeps the log of a run either way.
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
# ... and other libraries' bars would write over ours; lm-eval's command has none but them.
if sys.argv[1:2] != ["lm-eval"]:
    os.environ.setdefault("TQDM_DISABLE", "1")

# Whatever reaches prefect, torch or pyarrow is imported inside the command, so that --help is instant.
if TYPE_CHECKING:
    from tasks.job.job import ScoringJob

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Scores a table of prompts with a language model, offline; the answer is SQL.",
    epilog="Start with [bold]trunkline preview JOB[/bold] and [bold]plan JOB[/bold], then [bold]score JOB[/bold].",
)

app.add_typer(store_app, name="store")


@app.command(epilog="Example: [bold]trunkline score examples/classify.yaml --set engine.kv_cache_memory=1GiB[/bold]")
def score(
    job: JobFile,
    output: Output = None,
    retry_failed: RetryFailed = False,
    full: Full = False,
    wait: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Wait for a run that has the folder.")] = 0.0,
    settings: Settings = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="Write a JSON line for each step of the engine.")
    ] = None,
    sharing: SharingPolicy = None,
    order: OrderPolicy = None,
    admission: AdmissionPolicy = None,
) -> None:
    """Score every row that has no result yet. Killed at any time, the same command continues."""
    with _loaded(job, output, settings, sharing=sharing, order=order, admission=admission) as loaded:
        from tasks.check import check_job

        check_job(loaded)
    from engine.process.importing import importing

    with importing():
        from flows.run_job import run_job

    run_job(loaded, retry_failed=retry_failed, full=full, wait=wait, trace=trace)


@app.command(epilog="Example: [bold]trunkline plan examples/classify.yaml[/bold]")
def plan(
    job: JobFile,
    output: Output = None,
    settings: Settings = None,
    sharing: SharingPolicy = None,
    order: OrderPolicy = None,
    admission: AdmissionPolicy = None,
    retry_failed: RetryFailed = False,
    full: Full = False,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="GPU", help="Plan for a GPU that need not be here, such as h100 or l4."),
    ] = None,
    form: ReportFormat = "table",
) -> None:
    """Show what a job would cost: rows, tokens before and after sharing, memory, time. No model is loaded."""
    with _loaded(job, output, settings, sharing=sharing, order=order, admission=admission) as loaded:
        from tasks.dry_run import plan_job

        planned = plan_job(loaded, device, retry_failed=retry_failed, full=full)
    typer.echo(json.dumps(planned.as_json(), indent=2) if form == "json" else str(planned))


@app.command(epilog="Example: [bold]trunkline simulate examples/classify.yaml --devices 8 --device h100[/bold]")
def simulate(
    job: JobFile,
    output: Output = None,
    settings: Settings = None,
    devices: Annotated[int, typer.Option(min=1, help="How many, alike.")] = 1,
    device: Annotated[
        str | None, typer.Option("--device", metavar="GPU", help="GPUs that need not be here, such as h100 or l4.")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, metavar="PRICE", help="Of a device, for what each policy costs.")
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            metavar="SHAPE", help="Rows in place of the job's: groups=8,degree=16,prefix=1024,distinct=64,output=32."
        ),
    ] = None,
    form: ReportFormat = "table",
) -> None:
    """Run the scheduler with a clock in place of the model: time, KV, use and money of each policy."""
    from engine.planning.described_table import DescribedTable

    described = None if table is None else DescribedTable.parse(table)
    with _loaded(job, output, settings) as loaded:
        from tasks.simulate import simulate_job

        found = simulate_job(loaded, devices=devices, device=device, price_per_hour=price_per_hour, table=described)
    from flows.show_simulation import show_simulation

    show_simulation(found, form)


@app.command(epilog="Example: [bold]trunkline preview examples/classify.yaml --rows 1[/bold]")
def preview(
    job: JobFile,
    rows: Annotated[int, typer.Option(min=1, help="How many rows, from the first.")] = 3,
    custom_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The row with this id instead.", show_default=False)
    ] = None,
    form: Annotated[Literal["table", "json"], typer.Option("--format", "-f", help="How to write them.")] = "table",
    settings: Settings = None,
) -> None:
    """Print prompts as the model would get them, with the chat template and special tokens. No model is loaded."""
    with _loaded(job, None, settings) as loaded:
        from tasks.preview import preview_rows

        previews = preview_rows(loaded, rows, custom_id)
    from flows.show_preview import as_json, show_previews

    if form == "json":
        typer.echo(as_json(previews))
        return
    from rich.console import Console

    show_previews(previews, Console())


@app.command(epilog="Example: [bold]trunkline drift examples/classify.yaml --set model.quantization=int8[/bold]")
def drift(
    job: JobFile,
    rows: Annotated[int, typer.Option(help="How many rows to score, spread over the table.")] = 200,
    settings: Settings = None,
) -> None:
    """Score a sample in full precision and in the job's, and show how far the answers move. Nothing is written."""
    with _loaded(job, None, settings) as loaded:
        from rich.console import Console

        from flows.show_drift import show_drift

        show_drift(loaded, rows, Console(), Console(stderr=True))


@app.command(epilog='Example: [bold]trunkline sql "select label, count(*) from results group by all"[/bold]')
def sql(
    query: Annotated[
        str | None, typer.Argument(metavar="QUERY", help="One SELECT; - reads it from stdin.", show_default=False)
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FOLDER", help="The output folder; else the latest run's.")
    ] = None,
    form: Annotated[Format | None, typer.Option("--format", "-f", help="How to write the answer.")] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Write into a file; its ending says how.")
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="NAME=FOLDER", help="Open another folder beside it; repeatable."),
    ] = None,
    attach: Annotated[
        bool, typer.Option("--attach", help="Print the SQL that opens the views in a DuckDB of your own.")
    ] = False,
) -> None:
    """Query the results; [bold]from dictionary[/bold] lists views, columns and macros, and what they mean."""
    if attach == (query is not None):
        raise UserError("sql: give one SELECT, or --attach")
    from flows.run_sql import run_sql, show_attach

    if query is None:
        return show_attach(output)
    return run_sql(sys.stdin.read() if query == "-" else query, output, form, to, others or ())


@app.command(epilog="Example: [bold]trunkline runs runs/package-topics --format json[/bold]")
def runs(
    folder: Annotated[
        str | None,
        typer.Argument(metavar="FOLDER", help="An output folder; else all that your runs used.", show_default=False),
    ] = None,
    form: Annotated[RunFormat, typer.Option("--format", "-f", help="How to write them.")] = "table",
    last: Annotated[
        int | None,
        typer.Option(min=1, help="Only the newest of a folder; 5 where all folders are listed.", show_default=False),
    ] = None,
) -> None:
    """List runs: what each is doing now, or how it ended, and how many of its rows are done."""
    from flows.show_runs import show_runs

    show_runs(folder, form, last)


@app.command(epilog="Example: [bold]trunkline report runs/package-topics[/bold]")
def report(
    folder: Annotated[
        str | None,
        typer.Argument(metavar="FOLDER", help="An output folder; else the latest run's.", show_default=False),
    ] = None,
) -> None:
    """Write report.html anew: what was asked, what came, tokens, time, errors. A run writes it where it ends."""
    from flows.show_report import write_and_tell

    write_and_tell(folder)


@app.command(epilog="Example: [bold]trunkline stop runs/package-topics[/bold]")
def stop(
    folder: Annotated[
        str | None,
        typer.Argument(metavar="FOLDER", help="Its output folder; else your only run.", show_default=False),
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for its end.")] = 60.0,
) -> None:
    """End a run at its next step, wherever it runs. What is committed stays, and score continues it."""
    from flows.stop_run import stop_run

    sys.exit(stop_run(folder, wait))


@app.command(epilog="Example: [bold]trunkline batch examples/batch.jsonl -o out.jsonl --errors errors.jsonl[/bold]")
def batch(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A JSON request a line, .gz too.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="A line for each response.", show_default=False)
    ],
    errors: Annotated[
        Path | None,
        typer.Option("--errors", metavar="FILE", help="A line an error; else OUT with .errors before its ending."),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="embedded, a folder with safetensors, or a .gguf file.")
    ] = "embedded",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again what ended as an error.")] = False,
    settings: Settings = None,
) -> None:
    """Answer a file of OpenAI batch requests. Killed at any time, the same command continues from OUT.run."""
    from flows.run_batch import run_batch
    from tasks.batch.batch_run import BatchRun

    beside = output.with_name(f"{output.stem}.errors{output.suffix}")
    given = dict(map(_setting, settings or ()))
    run_batch(BatchRun(source, output, errors or beside, model), given, retry_failed=retry_failed)


@app.command(
    "lm-eval",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="Example: [bold]trunkline lm-eval --model_args pretrained=embedded --tasks hellaswag[/bold]",
)
def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness with all of its options, on its model [bold]trunkline[/bold]."""
    from flows.harness.command import run_lm_eval

    run_lm_eval(context.args)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(installed("trunkline"))


@contextmanager
def _loaded(
    job: Path, output: str | None, settings: list[str] | None, **policies: str | None
) -> Iterator["ScoringJob"]:
    """The job. A fault of one of its keys names the file too where the context finds it."""
    from tasks.job.job_file import load_job

    overrides: dict[str, object] = dict(map(_setting, settings or ()))
    if output is not None:
        overrides["output"] = output
    overrides |= {f"engine.{key}": value for key, value in policies.items() if value is not None}
    loaded = load_job(job, overrides)
    try:
        yield loaded
    except UserError as error:
        of_a_key = tuple(key + end for key in type(loaded).model_fields for end in (".", ":"))
        lines = (f"{job}: {line}" if line.startswith(of_a_key) else line for line in str(error).splitlines())
        raise UserError("\n".join(lines)) from None


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set {text}: write it as KEY=VALUE, such as --set engine.kv_cache_memory=1GiB")
    return key.strip(), value


def main() -> None:
    """Runs the command; what the user can mend is a line on stderr, and exit code 2."""
    try:
        app()
    except UserError as error:
        _fail(str(error), 2)
    except BrokenPipeError:
        # The reader, such as `head`, has what it wants.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    from flows.terminal_text import harmless

    for line in message.splitlines():
        typer.echo(f"trunkline: {harmless(' '.join(line.split()))}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
