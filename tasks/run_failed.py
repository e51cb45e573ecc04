"""Why a run ends before all of its rows have, in one line; the same command continues."""

from engine.errors import TerminalError


class RunFailedError(TerminalError):
    """What is committed stays, and is published. Another try of the same step would end in the same way."""


class EngineKeepsDyingError(RunFailedError):
    """The engine dies, and rows are not why, or so many that nobody can tell."""
