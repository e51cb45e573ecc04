"""An engine's process on a worker of a cluster, as the run sees it."""

from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from typing import Any

# A worker may be busy with others' tasks, or its cluster forget it and know it again; nobody waits for longer.
SECONDS_TO_START = 60.0
# Every call is answered in about a second, but by a worker that is frozen, or whose network is gone: its cluster goes
# on knowing it for minutes.
SECONDS_OF_A_CALL = 60.0


class FarChild(ABC):
    """An `EngineChild` through calls to the `held_child.HeldChild` that holds it.

    Once the worker is gone whoever receives from it is told, and what ended it is that.
    """

    def __init__(self, worker: str) -> None:
        """`worker` is what a person calls the one that has it."""
        self.channel = self
        self._worker = worker
        self._frames: deque[bytes | None] = deque()

    def send(self, frame: bytes) -> None:
        self._call("send", frame)

    def receive(self) -> bytes | None:
        while not self._frames:
            try:
                self._frames += self._call("receive")
            except OSError:
                return None
        return self._frames.popleft()

    def where(self) -> str:
        with suppress(OSError):
            return str(self._call("where"))
        return ""

    def end(self, *, at_once: bool = False) -> None:
        with suppress(OSError):
            self._call("end", at_once)

    def how_it_ended(self) -> tuple[str, str]:
        try:
            words, where = self._call("how_it_ended")
        except OSError:
            words, where = f"its {self._worker} is gone", ""
        self._release()
        return words, where

    def _call(self, name: str, *arguments: object) -> Any:
        """What the method answers. Raises OSError where the worker is gone, or where the child cannot be sent to."""
        try:
            return self._asked(name, *arguments)
        except OSError:
            raise
        except Exception as problem:  # libraries have several for a worker that is gone, and none of ours is lost by it
            raise OSError(f"the {self._worker} does not answer: {problem}") from problem

    @abstractmethod
    def kill(self) -> None:
        """At once, and without waiting for it."""

    @abstractmethod
    def _asked(self, name: str, *arguments: object) -> Any:
        """What the method answers. Raises OSError after `SECONDS_OF_A_CALL`, and whatever its library does."""

    @abstractmethod
    def _release(self) -> None:
        """Nothing is asked of it any more."""
