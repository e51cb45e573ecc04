"""Named places where a test can make the process die, fail or hang. Off unless `FAILPOINT` is set."""

import errno
import os
import signal
import threading
from collections import Counter

_hits: Counter[str] = Counter()
_lock = threading.Lock()


def failpoint(name: str) -> None:
    """Acts at the n-th hit when the environment says `FAILPOINT=name:n:action`.

    Each setting counts its own hits; the name `*` counts those of every failpoint. Actions: `kill` (SIGKILL), `error`
    (an I/O error) and `hang`.
    """
    setting = os.environ.get("FAILPOINT")
    if setting:
        _act(name, setting)


def _act(name: str, setting: str) -> None:
    wanted, count, action = setting.split(":")
    if wanted not in (name, "*"):
        return
    with _lock:
        _hits[setting] += 1
        reached = _hits[setting] == int(count)
    if reached and action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if reached and action == "hang":
        threading.Event().wait()
    if reached and action == "error":
        raise OSError(errno.EIO, f"failpoint {name}")
