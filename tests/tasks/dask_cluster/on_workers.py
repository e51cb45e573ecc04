"""What a Dask worker runs in a test in the place of what it is asked for. It imports little, for a worker does too."""

import time
from pathlib import Path

from tasks.cluster.asked_model import tell_model
from tasks.cluster.held_child import HeldChild


def cannot_import(_: str) -> bytes:
    raise ModuleNotFoundError("No module named 'tasks'")


def tells_late(path: str) -> bytes:
    """Once somebody lets it."""
    deadline = time.monotonic() + 20
    while not Path(path, "go").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return tell_model(path)


class SlowToBegin(HeldChild):
    def __init__(self, server: str) -> None:
        time.sleep(1)
        super().__init__(server)
