"""The output folders that this user's runs have used, so that `trunkline runs` needs none named."""

import hashlib
import logging
from contextlib import suppress
from pathlib import Path

from engine.model.checkpoint import publish_file
from tasks.job.output_place import is_url
from tasks.report.latest import state_folder
from tasks.storage.output_folder import OutputFolder

log = logging.getLogger(__name__)


def remember_folder(folder: OutputFolder) -> None:
    """A convenience alone: a home that cannot be written to fails no run. A note a folder, so that runs never meet."""
    name = hashlib.sha256(str(folder).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    try:
        publish_file(_notes() / name, f"{folder}\n")
    except (OSError, UnicodeEncodeError) as problem:
        log.warning("the run's folder is not remembered (%s)", type(problem).__name__)


def used_folders() -> list[str]:
    """Names of those that are still there; the others are forgotten. Buckets are not asked."""
    found = []
    notes = _notes()
    for note in sorted(notes.iterdir()) if notes.is_dir() else ():
        with suppress(OSError, UnicodeDecodeError):
            name = note.read_text(encoding="utf-8").removesuffix("\n")
            if is_url(name) or OutputFolder(Path(name)).is_used:
                found.append(name)
            else:
                note.unlink()
    return sorted(found)


def _notes() -> Path:
    return state_folder() / "folders"
