"""Which failures are worth another try: those that may be gone next time, and no others."""

import errno
from typing import Any

import duckdb
import httpx
import pyarrow as pa

from engine.errors import EngineDeadError, EngineLostError, TerminalError, TransientError
from tasks.storage.bucket_errors import BucketUnavailableError

# Disk, memory, network, device: the program is right, and another time it may work.
OUTSIDE = (
    OSError,
    MemoryError,
    EngineDeadError,
    EngineLostError,
    BucketUnavailableError,
    duckdb.Error,
    pa.ArrowException,
    httpx.HTTPError,
)

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
    """Of our own errors, which their class says; else a passing I/O error or a lost connection: a full disk stays."""
    if isinstance(problem, TerminalError | TransientError):
        return isinstance(problem, TransientError)
    if isinstance(problem, ConnectionError | TimeoutError | httpx.TransportError):
        return True
    return isinstance(problem, OSError) and problem.errno in _ERRNOS


def retry_transient(_task: Any, _task_run: Any, state: Any) -> bool:
    """Prefect's `retry_condition_fn`."""
    problem = state.data
    return isinstance(problem, BaseException) and is_transient(problem)
