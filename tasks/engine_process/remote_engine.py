"""An engine in a child process, from its start to its end."""

import logging
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from threading import Event, Lock, Thread

import msgspec

from engine.config import EngineConfig
from engine.errors import EngineClosedError, EngineDeadError, EngineNotLoadedError, UserError
from engine.machine.place import Place
from engine.model.checkpoint import ModelFiles
from engine.plan import ShardWork
from engine.process.child import SECONDS_TO_END
from engine.request import RequestOutput
from tasks.engine_process.engine_child import EngineChild
from tasks.engine_process.messages import (
    Died,
    Done,
    Entered,
    Finished,
    FromEngine,
    Load,
    Loaded,
    Logged,
    NotLoaded,
    Pulse,
    Refused,
    Submit,
    read_from_engine,
    to_engine,
)
from tasks.engine_process.step_clock import LOOK_SECONDS, StepClock
from tasks.workers import Computed, OnOutput

log = logging.getLogger(__name__)

ANYWHERE = Place()


@dataclass(slots=True, eq=False)
class _Submission:
    on_output: OnOutput | None
    future: "Future[list[RequestOutput]]" = field(default_factory=Future)
    outputs: list[RequestOutput] = field(default_factory=list)


class RemoteEngine:
    """`child` loads the model and computes; a thread of this process takes what it tells, another looks if it hangs.

    Where the child ends, by itself or because no step ended in `config.step_timeout` seconds, all its shards fail with
    EngineDeadError, and so does every later call; after `close` it is EngineClosedError.
    """

    def __init__(
        self,
        child: EngineChild,
        model: ModelFiles,
        config: EngineConfig,
        trace: Path | None = None,
        place: Place = ANYWHERE,
    ) -> None:
        self.config = config
        self.stage = "loading the model"
        self.waiting_for: str | None = None
        self.computed = Computed()
        self._child = child
        self._held: dict[int, _Submission] = {}
        self._numbers: Iterator[int] = count()
        self._steps = 0
        self._stages = 0
        self._cause = ""
        self._where = ""
        self._ending = False
        self._closing = False
        self._over = Event()
        self._lock = Lock()
        self._loaded: Future[None] = Future()
        self._send(Load(model, config, trace, place))
        # What it logs is the flow run's that it is started in.
        receive = partial(copy_context().run, self._receive)
        Thread(target=receive, name="trunkline-receiver", daemon=True).start()
        Thread(target=self._watch, name="trunkline-watchdog", daemon=True).start()

    @property
    def dead(self) -> bool:
        return self._ending or self._closing or self._over.is_set()

    @property
    def loaded(self) -> bool:
        """Whether it can compute."""
        return self._loaded.done() and self._loaded.exception() is None

    def wait_until_loaded(self) -> None:
        """Raises UserError for a model that cannot be served, EngineNotLoadedError where the child ended meanwhile."""
        self._loaded.result()

    def submit(self, work: ShardWork, on_output: OnOutput | None = None) -> "Future[list[RequestOutput]]":
        """Outputs come in the order of `work.requests`; `on_output` gets each as it comes, in the receiving thread.

        The future has a UserError where an adapter of its requests cannot run there.
        """
        submission = _Submission(on_output)
        with self._lock:
            if self.dead:
                raise self._error()
            number = next(self._numbers)
            self._held[number] = submission
        self._send(Submit(number, work))
        return submission.future

    def close(self) -> None:
        """Ends the child; shards that are not done fail, and so does who waits for the model."""
        with self._lock:
            self._closing = True
        self._fail_all()
        self._child.end(at_once=not self.loaded)
        self._over.wait(SECONDS_TO_END)

    def _send(self, message: Load | Submit) -> None:
        # Where it has ended, the receiving thread says so to all who wait.
        with suppress(OSError):
            self._child.channel.send(to_engine(message))

    def _receive(self) -> None:
        try:
            while (frame := self._child.channel.receive()) is not None:
                for message in read_from_engine(frame):
                    self._take(message)
        except msgspec.MsgspecError as problem:
            self._cause = f"it sent what cannot be read ({problem})"
        words, where = self._child.how_it_ended()
        self._cause = self._cause or words
        self._where = self._where or where
        with self._lock:
            self._over.set()
        if self.loaded and not self._closing:
            log.warning("%s\n%s", self._error(), self._where)
        self._fail_all()

    def _take(self, message: FromEngine) -> None:
        match message:
            case Pulse():
                self.computed, self.waiting_for, self._steps = message.computed, message.waiting_for, message.steps
            case Finished():
                self._give(message)
            case Done() | Refused():
                self._finish(message)
            case Entered():
                self.stage = message.stage
                self._stages += 1
            case Loaded():
                self.config = message.config
                self._settle(None)
            case NotLoaded():
                self._cause = message.words
                self._ending = True
                self._settle(UserError(message.words) if message.is_users else self._error())
            case Died():
                self._cause, self._where = message.words, message.traceback
                self._ending = True
            case Logged():
                logging.getLogger(message.logger).log(message.level, "%s", message.words)

    def _give(self, message: Finished) -> None:
        submission = self._held.get(message.number)
        if submission is None:
            return
        submission.outputs.append(message.output)
        try:
            if submission.on_output is not None:
                submission.on_output(message.output)
        except Exception as problem:  # of the caller's, whose shard it is
            del self._held[message.number]
            submission.future.set_exception(problem)

    def _finish(self, message: Done | Refused) -> None:
        submission = self._held.pop(message.number, None)
        if submission is None:
            return
        if isinstance(message, Refused):
            submission.future.set_exception(UserError(message.words))
        else:
            submission.future.set_result([submission.outputs[place] for place in message.order])

    def _watch(self) -> None:
        limit = self.config.step_timeout
        clock = StepClock(limit)
        while not self._over.wait(LOOK_SECONDS):
            is_busy = self.loaded and bool(self._held) and self.waiting_for is None
            if clock.is_over((self._steps, self._stages), is_busy=is_busy):
                self._ending = True
                self._cause = f"no step ended in {limit:g} s (engine.step_timeout), so its process was ended"
                self._where = self._child.where()
                self._child.kill()
                return

    def _settle(self, error: BaseException | None) -> None:
        """Says, once, whether the model is loaded."""
        with self._lock:
            if self._loaded.done():
                return
            if error is None:
                self._loaded.set_result(None)
            else:
                self._loaded.set_exception(error)

    def _fail_all(self) -> None:
        self._settle(self._error())
        with self._lock:
            held = [self._held.pop(number) for number in list(self._held)]
        for submission in held:
            submission.future.set_exception(self._error())

    def _error(self) -> EngineDeadError | EngineClosedError:
        if self._closing:
            return EngineClosedError("the engine was closed")
        error: EngineDeadError
        if self.loaded:
            error = EngineDeadError(f"the engine died: {self._cause}")
        else:
            error = EngineNotLoadedError(f"the engine could not be loaded: {self._cause}")
        if self._where:
            error.add_note(self._where)
        return error
