"""The output folders that this user's runs have used, so that `trunkline runs` needs none named."""

import hashlib
import logging
from contextlib import suppress
from pathlib import Path

from engine.model.checkpoint import publish_file
from tasks.report.latest import state_folder
from tasks.storage.open_folder import open_folder
from tasks.storage.output_folder import OutputFolder

log = logging.getLogger(__name__)


def remember_folder(folder: OutputFolder) -> None:
    """A convenience alone: a home that cannot be written to fails no run. A note a folder, so that runs never meet."""
    name = hashlib.sha256(str(folder).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    try:
        publish_file(_notes() / name, f"{folder}\n")
    except (OSError, UnicodeEncodeError) as problem:
        log.warning("the run's folder is not remembered (%s)", type(problem).__name__)


def used_folders() -> list[OutputFolder]:
    """Those that are still there, by name; the others are forgotten. Buckets are not asked."""
    found = []
    notes = _notes()
    for note in sorted(notes.iterdir()) if notes.is_dir() else ():
        with suppress(OSError, UnicodeDecodeError):
            folder = open_folder(note.read_text(encoding="utf-8").removesuffix("\n"))
            if folder.bucket is not None or folder.is_used:
                found.append(folder)
            else:
                note.unlink()
    return sorted(found, key=str)


def _notes() -> Path:
    return state_folder() / "folders"
