"""The engine's process: loads what it is told to load, computes what it is sent, and ends with whoever started it."""

import atexit
import importlib
import logging
import os
import traceback
from collections.abc import Mapping
from concurrent.futures import Future
from threading import Event, Thread
from typing import TYPE_CHECKING

from engine.errors import EngineClosedError, UserError
from engine.loop.trace import TraceWriter
from engine.machine.device import resolve_device
from engine.machine.device_turn import DeviceTurn, turn_of
from engine.process.begin import begin
from engine.process.channel import Channel
from engine.process.importing import importing
from engine.request import RequestOutput
from engine.stages import hear_stages
from tasks.engine_process.messages import (
    Died,
    Done,
    Entered,
    Finished,
    Load,
    Loaded,
    Logged,
    NotLoaded,
    Pulse,
    Refused,
    Submit,
    read_to_engine,
)
from tasks.engine_process.sender import Sender
from tasks.one_engine import computed_by
from tasks.workers import Computed

if TYPE_CHECKING:
    from engine.loop.engine import Engine


def main() -> None:
    EngineServer(begin()).serve()
    # Without taking the interpreter apart, which the engine's thread may be using.
    atexit._run_exitfuncs()
    os._exit(0)


class EngineServer:
    """Answers what comes through a channel, of which the first is what to load."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._engine: Engine | None = None
        self._turn = DeviceTurn()
        self._sender = Sender(channel, self._pulse)

    def serve(self) -> None:
        """Until the channel's end."""
        try:
            self._serve()
        except BaseException as error:
            self._die(error)
            Event().wait()  # for the sender, which ends the process

    def _serve(self) -> None:
        with importing():
            importlib.import_module("engine.loop.build")  # seconds, in which the other end has more to do
        logging.getLogger().addHandler(_Forwarding(self._sender))
        with hear_stages(lambda stage: self._sender.put(Entered(stage))):
            while (frame := self._channel.receive()) is not None:
                message = read_to_engine(frame)
                if isinstance(message, Load):
                    message.place.take()  # in this thread, from which those that compute have it
                    Thread(target=self._load, args=(message,), name="trunkline-load", daemon=True).start()
                else:
                    self._submit(message)

    def _load(self, message: Load) -> None:
        from engine.loop.build import start_engine

        try:
            # Others that wait for the device are told of the run, which is what a person may end.
            self._turn = turn_of(resolve_device(message.config), os.getppid(), message.config.tensor_parallel)
            # Its file is open for as long as this process is there: the engine's thread may step until then.
            on_step = TraceWriter(message.trace, keep=True) if message.trace is not None else None
            engine = start_engine(message.model, message.config, on_step=on_step, turn=self._turn)
            engine.wait_until_loaded()
        except UserError as error:
            self._sender.put(NotLoaded(_text(str(error)), is_users=True))
        except BaseException as error:
            self._sender.put(NotLoaded(_words(error), is_users=False))
        else:
            self._engine = engine
            self._sender.put(Loaded(engine.config))

    def _submit(self, message: Submit) -> None:
        assert self._engine is not None, "a shard before the model"
        number, came = message.number, dict[int, int]()

        def on_output(output: RequestOutput) -> None:
            came[id(output)] = len(came)
            self._sender.put(Finished(number, output))

        try:
            future = self._engine.submit(message.work, on_output)
        except RuntimeError as error:  # it died meanwhile
            self._die(error)
        else:
            future.add_done_callback(lambda ended: self._end(number, ended, came))

    def _end(self, number: int, future: "Future[list[RequestOutput]]", came: Mapping[int, int]) -> None:
        error = future.exception()
        if error is None:
            self._sender.put(Done(number, tuple(came[id(output)] for output in future.result())))
        elif isinstance(error, UserError):
            self._sender.put(Refused(number, _text(str(error))))
        elif not isinstance(error, EngineClosedError):
            self._die(error)

    def _die(self, error: BaseException) -> None:
        """What made a step fail may have left the device, or the process, unusable."""
        cause = error.__cause__ or error
        self._sender.put(Died(_words(cause), _text("".join(traceback.format_exception(cause)))))

    def _pulse(self) -> Pulse:
        engine = self._engine
        waiting_for = self._turn.waiting_for
        if engine is None:
            return Pulse(Computed(), 0, waiting_for)
        return Pulse(computed_by(engine), engine.counters().steps, waiting_for)


class _Forwarding(logging.Handler):
    """Sends what is logged to where a person is told of it."""

    def __init__(self, sender: Sender) -> None:
        super().__init__(logging.WARNING)
        self._sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        self._sender.put(Logged(record.name, record.levelno, _text(record.getMessage())))


def _words(error: BaseException) -> str:
    """An exception in one line."""
    said = _text(str(error)).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _text(said: str) -> str:
    """A file's name that is no text may be in it."""
    return said.encode(errors="backslashreplace").decode()
