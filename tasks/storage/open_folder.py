"""From what a person calls an output folder to it."""

from pathlib import Path

from engine.errors import UserError
from tasks.job.job import ScoringJob
from tasks.job.output_place import checked_place, is_url, local_folder
from tasks.storage.output_folder import OutputFolder


def open_folder(place: str | Path) -> OutputFolder:
    """That of a path, or of a URL, with which nothing is done yet.

    Raises UserError for a URL that is none, or where the library for buckets is not installed.
    """
    try:
        name = checked_place(str(place))
    except ValueError as problem:
        raise UserError(f"output: {problem}") from None
    root = local_folder(name)
    if not is_url(name):
        return OutputFolder(root)
    try:
        from tasks.storage.bucket_folder import BucketFolder
    except ModuleNotFoundError as problem:
        raise UserError(f"output: {name} needs {problem.name}: pip install 'trunkline[s3]'") from None
    return OutputFolder(root, BucketFolder(name, root))


def folder_of(job: ScoringJob) -> OutputFolder:
    """Where the job's results go."""
    return open_folder(job.output_place)
