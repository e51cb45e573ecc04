"""A request to end a run, left in its output folder, which whoever has the folder reads, on whatever machine it runs.

No signal is sent: a process id may be another program's by now, or another machine's. A request names the holding of
the lock that it is for, so that it can end no later run.
"""

import json
import os

from engine.errors import UserError
from engine.file_lock import Holder
from tasks.storage.file_mode import file_mode
from tasks.storage.output_folder import OutputFolder


class RunStoppedError(Exception):
    """The run was asked to end, and did (exit code 3).

    Cure: none is needed; the same command continues.
    """


def ask_to_stop(folder: OutputFolder, holder: Holder) -> None:
    """Asks the run that has the folder to end at its next step. Raises UserError where the folder is not the user's."""
    try:
        descriptor = os.open(folder.stop_request, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, file_mode())
    except OSError as problem:
        raise UserError(f"{folder.stop_request}: cannot be written ({problem.strerror})") from None
    with open(descriptor, "w", encoding="utf-8") as file:  # half of it is no request yet
        json.dump({"holder": holder.token}, file)
    folder.tell(folder.stop_request)


def is_asked(folder: OutputFolder, holder: Holder) -> bool:
    """Whether this holding of the folder was asked to end."""
    try:
        said = json.loads(folder.stop_request.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("holder") == holder.token


def forget_requests(folder: OutputFolder, holder: Holder) -> None:
    """Removes a request for an earlier run. Only the lock's holder may call it."""
    if not is_asked(folder, holder):
        folder.remove(folder.stop_request)
