"""What a run needs of a cluster, whichever library it is of."""

from collections.abc import Hashable, Mapping
from typing import Protocol, TypeVar

from engine.machine.place import Place
from tasks.engine_process.engine_child import EngineChild

# A worker of a cluster, as long as it is there: who begins again in its place is another.
Seen = TypeVar("Seen", bound=Hashable)


class Asked(Protocol):
    """What a worker was asked for, which may take it minutes."""

    def done(self) -> bool: ...

    def cancel(self) -> None:
        """Nobody asks for the answer any more, nor anything else of this worker."""

    def told(self) -> bytes | None:
        """What `asked_model.tell_model` says there, where `done`; None where the worker went meanwhile, so that it may
        be asked again.

        Raises UserError for a worker that cannot be asked, which would be so again.
        """


class Cluster(Protocol[Seen]):
    """Any thread may call it."""

    @property
    def kind(self) -> str:
        """What a person calls one of its workers."""

    @property
    def cure(self) -> str:
        """What a person does for more of them."""

    def known(self) -> Mapping[Seen, Place]:
        """Who is there, and where of its machine an engine computes; nobody where the cluster does not answer."""

    def address(self, seen: Seen) -> str:
        """Where a person finds the worker."""

    def ask(self, seen: Seen, path: str) -> Asked:
        """Asks the worker what model lies at `path`."""

    def start_child(self, seen: Seen) -> EngineChild:
        """An engine's process there.

        Raises EngineLostError where the worker is gone, EngineNotLoadedError where it is there and has not begun.
        """
