"""The engine's errors, split by who can mend them, and all errors by whether another try may.

The two classes are dlt's: a terminal error would come again, a transient one may be gone the next time.
`tasks/transient.py` says which of the two other libraries' errors are.
"""


class TerminalError(Exception):
    """Would come again: whoever meets it ends."""


class TransientError(Exception):
    """May be gone another time: whoever meets it may try again."""


class UserError(TerminalError):
    """Bad input: one clear line that names the file, key or row, before any row is scored (exit code 2).

    Cure: the line says it.
    """


class EngineDeadError(TransientError, RuntimeError):
    """The engine's loop ended; every shard it held must run again.

    Cure: the run starts another engine by itself. Where it ends so (exit code 1), the line says how the engine died, by
    a signal or a step that did not end: give it less memory (`engine.kv_cache_memory`) or more time
    (`engine.step_timeout`), and run the same command again.
    """


class EngineNotLoadedError(EngineDeadError):
    """The engine ended before it could compute, so that no shard is the cause.

    Cure: free memory, or lower `engine.kv_cache_memory`; `trunkline plan` says what a run takes. Then the same command.
    """


class EngineLostError(TerminalError, RuntimeError):
    """The engine ended and no other can be started in its place: what it held is another's to run.

    Cure: none is needed while other workers are there. Where the run ends so, its last worker is gone, or a third over
    the same shard: bring workers back, and run the same command again.
    """


class EngineClosedError(TerminalError, RuntimeError):
    """The engine was told to end: what it held is not to run again now.

    Cure: none is needed; the run was stopped, and the same command continues.
    """
