"""Remembers where the last run's results are, so that `trunkline sql` needs no folder."""

import logging
import os
from pathlib import Path

from engine.errors import UserError
from engine.model.checkpoint import publish_file
from tasks.storage.open_folder import open_folder
from tasks.storage.output_folder import OutputFolder

log = logging.getLogger(__name__)


def latest_output() -> OutputFolder:
    """Raises UserError where no run is remembered, or its folder is gone."""
    try:
        folder = open_folder(_note().read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        raise UserError("no run is remembered here; say which with --output FOLDER") from None
    if folder.bucket is None and not folder.root.is_dir():
        raise UserError(f"the latest run's folder {folder} is gone; say another with --output FOLDER")
    return folder


def remember_output(folder: OutputFolder) -> None:
    """A convenience alone: a home that cannot be written to fails no run."""
    try:
        publish_file(_note(), f"{folder}\n")
    except OSError as problem:
        log.warning("the latest run is not remembered (%s)", problem.strerror)


def state_folder() -> Path:
    """Where a user's programs remember things that are not worth a backup."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "trunkline"


def _note() -> Path:
    return state_folder() / "latest"
