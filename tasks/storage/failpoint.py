"""Named places where a test can make the process die, fail or hang. Off unless `FAILPOINT` is set."""

import errno
import os
import signal
import threading

_hits = 0
_lock = threading.Lock()


def failpoint(name: str) -> None:
    """Acts at the n-th hit when the environment says `FAILPOINT=name:n:action`.

    The name `*` counts the hits of every failpoint. Actions: `kill` (SIGKILL), `error` (an I/O error) and `hang`.
    """
    setting = os.environ.get("FAILPOINT")
    if setting:
        _act(name, setting)


def _act(name: str, setting: str) -> None:
    global _hits
    wanted, count, action = setting.split(":")
    if wanted not in (name, "*"):
        return
    with _lock:
        _hits += 1
        reached = _hits == int(count)
    if reached and action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if reached and action == "hang":
        threading.Event().wait()
    if reached and action == "error":
        raise OSError(errno.EIO, f"failpoint {name}")
