import errno

import httpx
import pytest

from engine.errors import EngineDeadError, UserError
from tasks.transient import is_transient


@pytest.mark.parametrize(
    "problem",
    [
        EngineDeadError("gone"),
        OSError(errno.EIO, "i/o"),
        OSError(errno.ESTALE, "stale"),
        ConnectionResetError(),
        TimeoutError(),
        httpx.ConnectError("no server"),
        httpx.ReadTimeout("slow"),
    ],
    ids=repr,
)
def test_worth_another_try(problem: BaseException) -> None:
    assert is_transient(problem)


@pytest.mark.parametrize(
    "problem",
    [
        UserError("no"),
        ValueError(),
        AssertionError(),
        KeyboardInterrupt(),
        OSError(errno.ENOSPC, "full"),
        OSError(errno.EACCES, "denied"),
        FileNotFoundError(errno.ENOENT, "gone"),
        MemoryError(),
    ],
    ids=repr,
)
def test_would_fail_again(problem: BaseException) -> None:
    assert not is_transient(problem)
