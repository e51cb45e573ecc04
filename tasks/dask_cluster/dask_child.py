"""An engine's process on a Dask worker, as the run sees it."""

import time
from collections import deque
from contextlib import suppress
from typing import Any

from distributed import Client

from engine.errors import EngineLostError, EngineNotLoadedError
from tasks.dask_cluster.held_child import HeldChild
from tasks.dask_cluster.known_workers import known_workers
from tasks.engine_process.engine_process import SERVER

# How often a call that is not answered looks whether its worker is still there.
LOOK_SECONDS = 1.0
# A worker may be busy with others' tasks, or its scheduler forget it and know it again; nobody waits for longer.
SECONDS_TO_START = 60.0
# Every call is answered in about a second, but by a worker that is frozen, or whose network is gone: its scheduler goes
# on knowing it for minutes.
SECONDS_TO_ANSWER = 60.0
GONE = ("lost", "error", "cancelled")


class DaskChild:
    """An `EngineChild` on the worker of this address: an actor there holds the process.

    Once the worker is gone whoever receives from it is told, and what ended it is that.
    """

    def __init__(self, client: Client, address: str, server: str = SERVER) -> None:
        """Raises EngineLostError where the worker is gone, EngineNotLoadedError where it is there and has not begun."""
        self.channel = self
        self._address = address
        self._frames: deque[bytes | None] = deque()
        self._client = client
        self._future = client.submit(
            HeldChild, server, actor=True, workers=[address], allow_other_workers=False, pure=False
        )
        try:
            self._actor = self._held()
        except Exception as problem:
            self._future.cancel()
            kind = EngineNotLoadedError if self._is_there() else EngineLostError
            raise kind(f"the Dask worker {address} starts no engine: {problem}") from problem

    def send(self, frame: bytes) -> None:
        self._call("send", frame)

    def receive(self) -> bytes | None:
        while not self._frames:
            try:
                self._frames += self._call("receive")
            except OSError:
                return None
        return self._frames.popleft()

    def kill(self) -> None:
        with suppress(Exception):
            self._actor.kill()

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
            words, where = f"its Dask worker {self._address} is gone", ""
        self._future.release()
        return words, where

    def _held(self) -> Any:
        """The actor: a task for a worker that is gone would wait for ever.

        It calls through the client that is current when it comes, else through the newest, which may be anybody's.
        """
        deadline = time.monotonic() + SECONDS_TO_START
        while self._is_there() and time.monotonic() < deadline:
            with suppress(TimeoutError), self._client.as_current():
                return self._future.result(timeout=LOOK_SECONDS)
        raise OSError(f"none in {SECONDS_TO_START:g} s" if self._is_there() else "it is gone")

    def _is_there(self) -> bool:
        return self._address in known_workers(self._client)

    def _call(self, name: str, *arguments: object) -> Any:
        """What the actor answers. Raises OSError where its worker is gone, or where the child cannot be sent to."""
        asked = time.monotonic()
        try:
            answer = getattr(self._actor, name)(*arguments)
            while True:
                with suppress(TimeoutError):
                    return answer.result(timeout=LOOK_SECONDS)
                is_late = time.monotonic() - asked > SECONDS_TO_ANSWER
                if is_late or self._future.status in GONE or not self._is_there():
                    raise OSError(f"the Dask worker {self._address} is gone")
        except OSError:
            raise
        except Exception as problem:  # Dask has several for a worker that is gone, and none of ours is lost by it
            raise OSError(f"the Dask worker {self._address} does not answer: {problem}") from problem
