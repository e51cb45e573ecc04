"""Finds what is wrong with a job before anything runs: no weights are read, nothing is written to its folder."""

import tempfile
from pathlib import Path

from engine.model.tokenizer import load_tokenizer
from tasks.job.job import ScoringJob
from tasks.request.columns import find_columns
from tasks.request.prompts import check_prompt
from tasks.source.ids import check_ids
from tasks.source.source import read_data
from tasks.source.source_rows import number_rows
from tasks.storage.open_folder import folder_of
from tasks.storage.run import make_run
from tasks.store.scoring_store import ScoringStore


def check_job(job: ScoringJob) -> None:
    """Raises UserError for a missing file, column, model or device, a template or an id that is not one."""
    find_columns(job)
    folder = folder_of(job)
    folder.check()
    if job.store_folder is not None:
        ScoringStore(job.store_folder).check()
    run = make_run(job, folder)
    check_prompt(job.prompt, load_tokenizer(run.model), run.chat_template)
    if job.source.id is not None:
        with tempfile.TemporaryDirectory(prefix="trunkline-") as scratch:
            batches = number_rows(read_data(job.source, [job.source.id]))
            check_ids(batches, job.source.id, Path(scratch))
