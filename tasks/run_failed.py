"""Why a run ends before all of its rows have, in one line; the same command continues."""

from engine.errors import TerminalError


class RunFailedError(TerminalError):
    """What is committed stays, and is published. Another try of the same step would end in the same way (exit code 1).

    Cure: that of its subclasses, then the same command, which continues.
    """


class EngineKeepsDyingError(RunFailedError):
    """The engine dies, and rows are not why, or so many that nobody can tell.

    Cure: look at the driver and the memory; if it is the rows, raise `max_engine_deaths`. The same command continues.
    """


class ErrorRowError(RunFailedError):
    """A row is an error, and the job says `on_error: fail`.

    Cure: mend the row that the line names, or take the default, `on_error: row`.
    """


class TooManyErrorsError(RunFailedError):
    """More of the rows are errors than the job's `max_error_rate` allows.

    Cure: `trunkline sql "select error_type, count(*) from errors group by all"` shows what they are; mend them, or
    raise the key.
    """
