"""The engine's errors, split by who can mend them."""


class UserError(Exception):
    """Bad input from the user: one clear line that names the file, key or row and the cure (exit code 2)."""


class EngineDeadError(RuntimeError):
    """The engine's loop ended; every shard it held must run again."""


class EngineNotLoadedError(EngineDeadError):
    """The engine ended before it could compute, so that no shard is the cause."""


class EngineClosedError(RuntimeError):
    """The engine was told to end: what it held is not to run again now."""
