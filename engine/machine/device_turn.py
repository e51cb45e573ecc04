"""Whose turn it is on a device: of a user's processes one computes, the others wait.

Two runs on the same cores took sixteen times as long as one alone.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Lock

from engine.file_lock import HeldError, hold
from engine.machine.device import Device
from engine.machine.named_gpus import named_gpus
from engine.model.checkpoint import cache_dir
from engine.stages import enter

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
# An engine without work keeps the device this long: a run's next shard may be on its way.
KEEP_SECONDS = 10.0


class DeviceTurn:
    """One for all engines of an owner on a device; another owner in this process waits as another process does.

    Without names it is always its owner's turn. `waiting_for` names the process that has the device while an engine of
    the owner's waits. An engine gives its turn back when it has had no work for `keep_seconds`. `pid` is what others
    are told of the owner, where that is not this process.
    """

    def __init__(self, names: Sequence[str] = (), keep_seconds: float = KEEP_SECONDS, pid: int | None = None) -> None:
        self.waiting_for: str | None = None
        self.keep_seconds = keep_seconds
        self._names = names
        self._pid = pid
        self._holders: set[object] = set()
        self._held = ExitStack()
        self._lock = Lock()

    def take(self, holder: object, given_up: Callable[[], bool]) -> None:
        """Waits until the device is the owner's, or `given_up` says True."""
        with self._lock:
            while not self._holders and not self._try() and not given_up():
                time.sleep(POLL_SECONDS)
            self.waiting_for = None
            self._holders.add(holder)

    def give(self, holder: object) -> None:
        """Lets others have it once no engine of the owner's wants it."""
        with self._lock:
            self._holders.discard(holder)
            if not self._holders:
                self._held.close()

    def _try(self) -> bool:
        with ExitStack() as stack:
            try:
                for name in self._names:
                    stack.enter_context(hold(_file(name), self._pid))
            except HeldError as held:
                if self.waiting_for != str(held):
                    enter(f"waiting for {held}, which has the device")
                self.waiting_for = str(held)
                return False
            except OSError as problem:
                # A cache that cannot be written to costs the order of the runs, never a run.
                log.warning("other runs on this device are not waited for (%s)", problem.strerror)
            self._held = stack.pop_all()
            return True


def turn_of(device: Device, pid: int | None = None, ranks: int = 1) -> DeviceTurn:
    """A turn on the device, and those of the other ranks, for whoever calls, or for the process `pid`."""
    return DeviceTurn(lock_names(device, ranks), pid=pid)


def lock_names(device: Device, ranks: int = 1) -> tuple[str, ...]:
    """A lock a core, so that runs on different cores are not in each other's way; or one for each rank's GPU.

    A run that was given fewer threads than it has cores is meant to run beside others.
    """
    if device.name == "cpu":
        cores = sorted(os.sched_getaffinity(0))
        return tuple(f"core-{core}" for core in cores) if device.cores >= len(cores) else ()
    visible = named_gpus()
    first = int(device.name.partition(":")[2])
    return tuple(f"cuda-{visible[i] if i < len(visible) else i}" for i in range(first, first + ranks))


def _file(name: str) -> Path:
    folder = cache_dir() / "devices"
    folder.mkdir(parents=True, exist_ok=True)
    # A home may be shared by machines.
    return folder / f"{socket.gethostname()}-{name}.lock"
