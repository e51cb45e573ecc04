"""Which columns of the source a job uses, and for what."""

from tasks.job import ScoringJob
from tasks.prompts import PromptRenderer
from tasks.source import check_columns, read_columns


def used_columns(job: ScoringJob, renderer: PromptRenderer) -> tuple[str, ...]:
    """The columns to read. Raises UserError, which names the job's key, for one that the source lacks."""
    named = {f"source.keep.{column}": column for column in job.source.keep}
    key = next(key for key in ("column", "template", "messages") if getattr(job.prompt, key) is not None)
    available = read_columns(job.source)
    for column in renderer.columns:
        check_columns(available, {f"prompt.{key}": column})
    if job.source.id is not None:
        named["source.id"] = job.source.id
    if job.task.labels_column is not None:
        named["task.labels_column"] = job.task.labels_column
    check_columns(available, named)
    return tuple(dict.fromkeys([*renderer.columns, *named.values()]))
