"""What a Dask worker runs in a test in the place of what it is asked for. It imports little, for a worker does too."""

import time
from pathlib import Path

from engine.model.checkpoint import ModelFiles, resolve_model
from tasks.dask_cluster.held_child import HeldChild


def cannot_import(_: str) -> ModelFiles:
    raise ModuleNotFoundError("No module named 'tasks'")


def cannot_read(_: str) -> ModelFiles:
    raise PermissionError(13, "Permission denied")


def tells_late(path: str) -> ModelFiles:
    """Once somebody lets it."""
    deadline = time.monotonic() + 20
    while not Path(path, "go").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return resolve_model(path)


class SlowToBegin(HeldChild):
    def __init__(self, server: str) -> None:
        time.sleep(1)
        super().__init__(server)
