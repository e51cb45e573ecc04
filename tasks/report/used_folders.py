"""The output folders that this user's runs have used, so that `trunkline runs` needs none named."""

import hashlib
import logging
from contextlib import suppress
from pathlib import Path

from engine.model.checkpoint import publish_file
from tasks.report.latest import state_folder
from tasks.storage.output_folder import LOCK_NAME

log = logging.getLogger(__name__)


def remember_folder(root: Path) -> None:
    """A convenience alone: a home that cannot be written to fails no run. A note a folder, so that runs never meet."""
    name = hashlib.sha256(str(root).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    try:
        publish_file(_notes() / name, f"{root}\n")
    except (OSError, UnicodeEncodeError) as problem:
        log.warning("the run's folder is not remembered (%s)", type(problem).__name__)


def used_folders() -> list[Path]:
    """Those that are still there, by path; the others are forgotten."""
    found = []
    notes = _notes()
    for note in sorted(notes.iterdir()) if notes.is_dir() else ():
        with suppress(OSError, UnicodeDecodeError):
            root = Path(note.read_text(encoding="utf-8").removesuffix("\n"))
            if (root / LOCK_NAME).is_file():
                found.append(root)
            else:
                note.unlink()
    return sorted(found)


def _notes() -> Path:
    return state_folder() / "folders"
