"""What is no longer as a run left it: found, named, and set aside."""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


class DamagedError(Exception):
    """A file, or a folder in its place, that is not what a run wrote there.

    Cure: run the job again: the file is set aside as `*.bad`, and its rows are scored again.
    """

    def __init__(self, path: Path, said: str) -> None:
        super().__init__(f"{path.parent.name}/{path.name} {said}")
        self.path = path


def set_aside(path: Path) -> Path:
    """Renames whatever is there to `*.bad`, so that it can be looked at and nothing reads it."""
    names = (path.with_name(f"{path.name}{suffix}") for suffix in (".bad", *(f".{n}.bad" for n in range(1, 1000))))
    return path.rename(next(name for name in names if not os.path.lexists(name)))


def tell(problem: DamagedError, consequence: str) -> None:
    """In the run's log."""
    log.warning("%s: set aside as *.bad, %s", problem, consequence)
