"""`trunkline batch`: a batch file as a job of the same flow, then its results as lines."""

from collections.abc import Mapping
from typing import NoReturn

from rich.console import Console

from engine.model.checkpoint import resolve_model
from flows.report import RunReport
from flows.run_job import run_job
from flows.terminal_text import as_text
from tasks.batch.batch_run import BatchRun
from tasks.batch.export import export
from tasks.check import check_job
from tasks.storage.output_folder import OutputFolder


def run_batch(batch: BatchRun, settings: Mapping[str, object], *, retry_failed: bool) -> NoReturn:
    """Ends the process as `run_job` does. Raises UserError before anything is scored."""
    batch.check()
    model = resolve_model(batch.model)

    def write_files(report: RunReport, console: Console) -> None:
        written = export(OutputFolder(report.folder), model, batch.model_name, batch.out, batch.errors)
        for path, lines in ((batch.out, written.responses), (batch.errors, written.errors)):
            console.print(as_text(f"{path}: {lines:,} lines"), soft_wrap=True)

    with batch.prepared():
        job = batch.job(settings)
        check_job(job)
        run_job(job, retry_failed=retry_failed, then=write_files)
