"""Why a run ends before all of its rows have, in one line; the same command continues."""

from engine.errors import TerminalError


class RunFailedError(TerminalError):
    """What is committed stays, and is published. Another try of the same step would end in the same way."""


class EngineKeepsDyingError(RunFailedError):
    """The engine dies, and rows are not why, or so many that nobody can tell."""


class ErrorRowError(RunFailedError):
    """A row is an error, and the job says `on_error: fail`."""


class TooManyErrorsError(RunFailedError):
    """More of the rows are errors than the job's `max_error_rate` allows."""
