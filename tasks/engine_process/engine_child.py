"""What a remote engine needs of the process that it is in, on this machine or another."""

from typing import Protocol


class Frames(Protocol):
    """Frames there and back. Any thread may send, and one receives."""

    def send(self, frame: bytes) -> None:
        """Raises OSError where nobody receives any more."""

    def receive(self) -> bytes | None:
        """The next frame; None at the end."""


class EngineChild(Protocol):
    """A process of an engine, as `engine.process.child.Child` is."""

    @property
    def channel(self) -> Frames: ...

    def kill(self) -> None:
        """At once, and without waiting for it."""

    def where(self) -> str:
        """Where each of its threads is; empty where it cannot say."""

    def end(self, *, at_once: bool = False) -> None:
        """In a few seconds at most. Whoever receives from it is told."""

    def how_it_ended(self) -> tuple[str, str]:
        """In a few words, and where its threads were, for whoever received its last frame."""
