"""Which failures are worth another try: those that may be gone next time, and no others."""

import errno
from typing import Any

from engine.errors import EngineDeadError

_ERRNOS = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.EIO,
        errno.ESTALE,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ETIMEDOUT,
        errno.EPIPE,
    }
)


def is_transient(problem: BaseException) -> bool:
    """True for a dead engine, a passing I/O error or a lost connection; a full disk or a bad value stays."""
    if isinstance(problem, EngineDeadError | ConnectionError | TimeoutError) or _is_connection_error(problem):
        return True
    return isinstance(problem, OSError) and problem.errno in _ERRNOS


def retry_transient(_task: Any, _task_run: Any, state: Any) -> bool:
    """Prefect's `retry_condition_fn`."""
    problem = state.data
    return isinstance(problem, BaseException) and is_transient(problem)


def _is_connection_error(problem: BaseException) -> bool:
    import httpx

    return isinstance(problem, httpx.TransportError)
