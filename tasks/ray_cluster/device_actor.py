"""What keeps a device of a Ray cluster for a run: an actor, which holds the engine's process there."""

import asyncio
from typing import Any

from tasks.cluster.asked_model import tell_model
from tasks.cluster.held_child import HeldChild


class DeviceActor:
    """One engine's process at a time, which ends with the actor, and that with the run. It gets and gives text, numbers
    and bytes alone.
    """

    def __init__(self) -> None:
        self._held: HeldChild | None = None
        self._number = 0

    async def tell(self, path: str) -> bytes:
        return await asyncio.to_thread(tell_model, path)

    async def begin(self, server: str) -> int:
        """Starts another process, and ends the one before; its number."""
        if self._held is not None:
            await self._held.end(True)
        self._number += 1
        self._held = await asyncio.to_thread(HeldChild, server)
        return self._number

    async def call(self, number: int, name: str, *arguments: object) -> Any:
        """What the method of `HeldChild` answers. Raises OSError where another process has taken this one's place."""
        if self._held is None or number != self._number:
            raise OSError("its process has ended")
        return await getattr(self._held, name)(*arguments)
