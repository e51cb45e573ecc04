"""An engine's process as a worker of a cluster holds it, whose methods `far_child.FarChild` calls."""

import asyncio
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from weakref import finalize

from engine.process.child import Child

# How long a call waits for the next frame, so that whoever calls looks up once in a while.
POLL_SECONDS = 1.0


class HeldChild:
    """Frames to and from the child, as they are. The child ends with this, and with the process that this is in.

    What may block runs in a thread, and never in the one that Dask or Ray has for actors: a call that waits for a frame
    would hold up those that send one there.
    """

    def __init__(self, server: str) -> None:
        self._child = Child(server)
        self._frames: SimpleQueue[bytes | None] = SimpleQueue()
        finalize(self, self._child.end, at_once=True)
        Thread(target=_receive_all, args=(self._child, self._frames), daemon=True).start()

    async def send(self, frame: bytes) -> None:
        """Raises OSError where the child has ended."""
        await asyncio.to_thread(self._child.channel.send, frame)

    async def receive(self) -> list[bytes | None]:
        """Frames that came since the last call; none after `POLL_SECONDS` without one, None as the last."""
        return await asyncio.to_thread(self._receive)

    async def where(self) -> str:
        return await asyncio.to_thread(self._child.where)

    async def kill(self) -> None:
        self._child.kill()

    async def end(self, at_once: bool) -> None:
        await asyncio.to_thread(self._child.end, at_once=at_once)

    async def how_it_ended(self) -> tuple[str, str]:
        return await asyncio.to_thread(self._child.how_it_ended)

    def _receive(self) -> list[bytes | None]:
        frames: list[bytes | None] = []
        with suppress(Empty):
            frames.append(self._frames.get(timeout=POLL_SECONDS))
            while True:
                frames.append(self._frames.get_nowait())
        return frames


def _receive_all(child: Child, frames: "SimpleQueue[bytes | None]") -> None:
    while (frame := child.channel.receive()) is not None:
        frames.put(frame)
    frames.put(None)
