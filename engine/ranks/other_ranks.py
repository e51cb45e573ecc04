"""The ranks of an engine but the first, as the first has them."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread

from engine.config import EngineConfig
from engine.errors import TransientError, UserError
from engine.forward.rank_group import abort_group, leave_group
from engine.machine.place import Place
from engine.model.checkpoint import ModelFiles
from engine.process.child import Child
from engine.ranks.messages import LoadPart, encode
from engine.ranks.rank_server import BEGUN
from engine.scheduling.scheduler_output import SchedulerOutput

SERVER = "engine.ranks.rank_server"
# In which a rank that makes a sum fail is known to have ended.
SECONDS_TO_KNOW = 2.0
# In which an engine that was closed, or died, has ended its ranks.
SECONDS_TO_LEAVE = 5.0

# torch.distributed has one group in a process.
_only = Lock()


class RankLostError(TransientError):
    """A rank of an engine ended, or did not run a step that the others ran.

    Seen as: an `EngineDeadError`, which says it; the run starts another engine, with all of its ranks.
    """


class OtherRanks:
    """A process for each of `places` but the first, which end with this one, however that ends.

    They import what they need when this is made, and then load the model with the first rank, through `meeting`.
    A process has one of these at a time, until `close`.
    """

    def __init__(self, model: ModelFiles, config: EngineConfig, places: Sequence[Place]) -> None:
        """Raises UserError where this process has an engine of several ranks that does not end meanwhile."""
        self._folder = tempfile.TemporaryDirectory(prefix="trunkline-ranks-", ignore_cleanup_errors=True)
        if not _only.acquire(timeout=SECONDS_TO_LEAVE):
            self._folder.cleanup()
            raise UserError(
                "engine.tensor_parallel: this process has an engine of several ranks already, and can have one at a "
                "time; close that one first, start this one in a process of its own, or set engine.tensor_parallel to 1"
            )
        self.meeting = Path(self._folder.name) / "meeting"
        self._lost = ""
        self._over, self._closing, self._close_once = Event(), False, Lock()
        self._children: list[Child] = []
        self._begun: list[Event] = []
        try:
            for rank, place in list(enumerate(places))[1:]:
                self._begin(LoadPart(model, config, rank, self.meeting, place))
        except BaseException:
            self.close()
            raise

    def _begin(self, part: LoadPart) -> None:
        child, begun = Child(SERVER), Event()
        self._children.append(child)
        self._begun.append(begun)
        watch, name = (part.rank, child, begun), f"trunkline-rank-{part.rank}"
        Thread(target=self._watch, args=watch, name=name, daemon=True).start()
        with suppress(OSError):  # of one that has ended, of which its watcher tells
            child.channel.send(encode(part))

    def wait_until_begun(self) -> None:
        """Raises RankLostError where one of them ended."""
        for begun in self._begun:
            begun.wait()
        self.check()

    def check(self) -> None:
        """Raises RankLostError where one of them ended."""
        if self._lost:
            raise RankLostError(self._lost)

    @contextmanager
    def running(self, step: SchedulerOutput) -> Iterator[None]:
        """The others begin the step, which this rank runs within. Raises RankLostError where one of them does not.

        Whatever goes wrong within it: the others wait in a sum that this rank does not come to, or the other way round.
        """
        try:
            frame = encode(step)
            for child in self._children:
                child.channel.send(frame)
            yield
        except Exception as problem:
            self.blame(problem)
            raise RankLostError(f"the first rank did not run a step: {type(problem).__name__}: {problem}") from problem

    def blame(self, problem: Exception) -> None:
        """Raises RankLostError where `problem` came of a rank that ended."""
        self._over.wait(SECONDS_TO_KNOW)
        if self._lost:
            raise RankLostError(self._lost) from problem

    def close(self) -> None:
        """Ends them, once, from any thread."""
        if not self._close_once.acquire(blocking=False):
            return
        self._closing = True
        try:
            for child in self._children:
                child.end(at_once=True)
            leave_group()
            self._folder.cleanup()
        finally:
            _only.release()

    def _watch(self, rank: int, child: Child, begun: Event) -> None:
        said = ""
        while (frame := child.channel.receive()) is not None:
            if frame == BEGUN:
                begun.set()
            else:
                said = frame.decode()
        words, _ = child.how_it_ended()
        self._lost = self._lost or f"rank {rank} ended: {said or words}"
        self._over.set()
        begun.set()
        if not self._closing:
            abort_group()
