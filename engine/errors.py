"""The engine's errors, split by who can mend them, and all errors by whether another try may.

The two classes are dlt's: a terminal error would come again, a transient one may be gone the next time.
`tasks/transient.py` says which of the two other libraries' errors are.
"""


class TerminalError(Exception):
    """Would come again: whoever meets it ends."""


class TransientError(Exception):
    """May be gone another time: whoever meets it may try again."""


class UserError(TerminalError):
    """Bad input from the user: one clear line that names the file, key or row and the cure (exit code 2)."""


class EngineDeadError(TransientError, RuntimeError):
    """The engine's loop ended; every shard it held must run again."""


class EngineNotLoadedError(EngineDeadError):
    """The engine ended before it could compute, so that no shard is the cause."""


class EngineLostError(TerminalError, RuntimeError):
    """The engine ended and no other can be started in its place: what it held is another's to run."""


class EngineClosedError(TerminalError, RuntimeError):
    """The engine was told to end: what it held is not to run again now."""
