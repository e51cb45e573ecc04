"""An engine's process on a device of a Ray cluster."""

from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from engine.errors import EngineLostError, EngineNotLoadedError
from tasks.cluster.far_child import SECONDS_OF_A_CALL, SECONDS_TO_START, FarChild
from tasks.engine_process.engine_process import SERVER


class RayChild(FarChild):
    """In the device's actor, which outlives it."""

    def __init__(self, actor: Any, address: str, server: str = SERVER) -> None:
        """Raises EngineLostError where the actor is gone, EngineNotLoadedError where it is there and has not begun."""
        super().__init__(f"Ray worker {address}")
        self._actor = actor
        try:
            self._number = ray.get(actor.begin.remote(server), timeout=SECONDS_TO_START)
        except GetTimeoutError:
            words = f"none in {SECONDS_TO_START:g} s"
            raise EngineNotLoadedError(f"the {self._worker} starts no engine: {words}") from None
        except RayTaskError as problem:
            raise EngineNotLoadedError(f"the {self._worker} starts no engine: {problem.cause}") from problem
        except Exception as problem:  # Ray's client has several for its server that is away
            raise EngineLostError(f"the {self._worker} starts no engine: it is gone") from problem

    def kill(self) -> None:
        with suppress(Exception):
            self._actor.call.remote(self._number, "kill")

    def _asked(self, name: str, *arguments: object) -> Any:
        try:
            return ray.get(self._actor.call.remote(self._number, name, *arguments), timeout=SECONDS_OF_A_CALL)
        except GetTimeoutError:
            raise OSError(f"the {self._worker} does not answer in {SECONDS_OF_A_CALL:g} s") from None

    def _release(self) -> None:
        """The actor keeps the device for the next process."""
