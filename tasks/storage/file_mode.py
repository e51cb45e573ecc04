"""Who may read what a run leaves: its owner alone, or whoever `TRUNKLINE_UMASK` lets.

The umask of the process does not count: most let everybody read. Nor is it a job's key: who shares a machine is not
what a job asks.
"""

import os
from pathlib import Path

from engine.errors import UserError

VARIABLE = "TRUNKLINE_UMASK"
_PRIVATE = 0o077
_WRITABLE_BY_OTHERS = 0o022


def file_mode() -> int:
    """0600, less or more as the umask says. Raises UserError for a setting that is none, or lets others write."""
    return 0o666 & ~_umask()


def folder_mode() -> int:
    """0700, less or more as the umask says. Raises UserError like `file_mode`."""
    return 0o777 & ~_umask()


def make_folder(path: Path, *, parents: bool = False) -> None:
    """Makes a folder of that mode; one that is there stays as it is."""
    if path.is_dir():
        return
    mode = folder_mode()
    path.mkdir(mode=mode, parents=parents, exist_ok=True)
    path.chmod(mode)


def _umask() -> int:
    said = os.environ.get(VARIABLE)
    if not said:
        return _PRIVATE
    try:
        umask = int(said, 8)
    except ValueError:
        umask = -1
    if not 0 <= umask <= _PRIVATE or umask & _WRITABLE_BY_OTHERS != _WRITABLE_BY_OTHERS:
        raise UserError(
            f"{VARIABLE}: {said!r:.40} is not 077 (the owner alone), 027 (the group may read) or 022 (all may)"
        )
    return umask
