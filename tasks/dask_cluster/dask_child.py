"""An engine's process on a Dask worker."""

import time
from contextlib import suppress
from typing import Any

from distributed import Client

from engine.errors import EngineLostError, EngineNotLoadedError
from tasks.cluster.far_child import SECONDS_OF_A_CALL, SECONDS_TO_START, FarChild
from tasks.cluster.held_child import HeldChild
from tasks.dask_cluster.known_workers import known_workers
from tasks.engine_process.engine_process import SERVER

# How often a call that is not answered looks whether its worker is still there.
LOOK_SECONDS = 1.0
GONE = ("lost", "error", "cancelled")


class DaskChild(FarChild):
    """On the worker of this address, where an actor holds it."""

    def __init__(self, client: Client, address: str, server: str = SERVER) -> None:
        """Raises EngineLostError where the worker is gone, EngineNotLoadedError where it is there and has not begun."""
        super().__init__(f"Dask worker {address}")
        self._address = address
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

    def kill(self) -> None:
        with suppress(Exception):
            self._actor.kill()

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

    def _asked(self, name: str, *arguments: object) -> Any:
        asked = time.monotonic()
        answer = getattr(self._actor, name)(*arguments)
        while True:
            with suppress(TimeoutError):
                return answer.result(timeout=LOOK_SECONDS)
            is_late = time.monotonic() - asked > SECONDS_OF_A_CALL
            if is_late or self._future.status in GONE or not self._is_there():
                raise OSError(f"the {self._worker} is gone")

    def _release(self) -> None:
        self._future.release()
