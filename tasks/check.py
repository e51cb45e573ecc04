"""Finds what is wrong with a job before anything runs: seconds, no weights, nothing written to the output folder."""

from engine.tokenizer import load_tokenizer
from tasks.columns import find_columns
from tasks.job import ScoringJob
from tasks.output_folder import OutputFolder
from tasks.prompts import check_chat
from tasks.run import make_run


def check_job(job: ScoringJob) -> None:
    """Raises UserError for a missing file, column, model or device, and for a template that is not one."""
    find_columns(job)
    folder = OutputFolder(job.output_folder)
    folder.check()
    run = make_run(job, folder)
    check_chat(job.prompt, load_tokenizer(run.model))
