"""What an engine's process tells: gathered for a moment, so that the engine's own thread only puts it down."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread

from engine.process.channel import Channel
from tasks.engine_process.messages import Died, FromEngine, NotLoaded, Pulse, from_engine

PULSE_SECONDS = 0.5
GATHER_SECONDS = 0.02


class Sender:
    """A thread that sends what is put, behind a pulse, and a pulse alone where nothing is put for a while.

    So who hears of a shard's end knows already what it took. What nothing can follow ends the process once it is sent.
    """

    def __init__(self, channel: Channel, pulse: Callable[[], Pulse]) -> None:
        self._channel = channel
        self._pulse = pulse
        self._waiting: SimpleQueue[FromEngine] = SimpleQueue()
        Thread(target=self._run, name="trunkline-sender", daemon=True).start()

    def put(self, message: FromEngine) -> None:
        self._waiting.put(message)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            messages = self._gather()
            is_last = any(isinstance(message, Died | NotLoaded) for message in messages)
            with suppress(OSError):  # nobody receives: the channel's reader ends this process
                self._channel.send(from_engine([self._pulse(), *messages]))
        os._exit(1)

    def _gather(self) -> list[FromEngine]:
        try:
            messages = [self._waiting.get(timeout=PULSE_SECONDS)]
        except Empty:
            return []
        time.sleep(GATHER_SECONDS)
        with suppress(Empty):
            while True:
                messages.append(self._waiting.get_nowait())
        return messages
