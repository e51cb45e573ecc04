"""`progress.json`: how far the newest run is, written anew every few seconds while it runs.

It is replaced as a whole, so that no reader sees half of it, and not synced: after a power cut it is wrong or gone, and
decides nothing.
"""

import os
from dataclasses import asdict, dataclass

from tasks.storage.damage import DamagedError
from tasks.storage.output_folder import OutputFolder
from tasks.storage.stored_json import read_json, stage_json


@dataclass(frozen=True, slots=True)
class RunProgress:
    """A moment of the run `run_id`, `seconds` after it began. Rows are those of its plan that have a committed end.

    `row_errors` are those of them that are errors. `tokens_per_second` and `seconds_left` are None until they are
    known.
    """

    run_id: str
    stage: str
    seconds: float
    rows_done: int | None = None
    row_errors: int | None = None
    scored: int = 0
    errors: int = 0
    computed_prompt_tokens: int = 0
    generated_tokens: int = 0
    tokens_per_second: float | None = None
    seconds_left: float | None = None


def write_progress(folder: OutputFolder, progress: RunProgress) -> None:
    os.replace(stage_json(folder.staged("progress.json"), asdict(progress)), folder.progress)


def read_progress(folder: OutputFolder) -> RunProgress | None:
    """None where nothing is there, or nothing that this version wrote."""
    try:
        return RunProgress(**read_json(folder.progress))
    except (DamagedError, TypeError):
        return None
