"""A forked process in the place of `subprocess.Popen`, which has at once what it would import for seconds."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress

from tasks.engine_process import server


class ChildProcess:
    """What an engine's process is asked of a `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, seconds: float = 60.0) -> int:
        deadline = time.monotonic() + seconds
        while (code := self._poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("the engine", seconds)
            time.sleep(0.005)
        return code

    def _poll(self) -> int | None:
        with self._lock:  # another thread may wait too, and a process has one end
            if self.returncode is None:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if ended else None
            return self.returncode


class ForkedProcess(ChildProcess):
    """Runs the engine's process, of whose command line the last words are its descriptors."""

    def __init__(self, command: Sequence[str], *, pass_fds: Sequence[int], **_: object) -> None:
        super().__init__(os.fork())
        if self.pid == 0:
            _serve(command[4], pass_fds)


class SpareProcess(ChildProcess):
    """Forked while this process has no thread yet; becomes an engine's process when one is started."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        super().__init__(os.fork())
        if self.pid == 0:
            self._ours.close()
            root, descriptors, _, _ = socket.recv_fds(theirs, 4096, 8)
            if not descriptors:
                os._exit(0)  # none was started
            theirs.close()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)
            _serve(root.decode(), descriptors)
        theirs.close()

    def __call__(self, command: Sequence[str], *, pass_fds: Sequence[int], **_: object) -> ChildProcess:
        """In the place of `subprocess.Popen`, once."""
        with self._ours:
            socket.send_fds(self._ours, [command[4].encode()], list(pass_fds))
        return self


def _serve(root: str, descriptors: Sequence[int]) -> None:
    try:
        os.setsid()
        _close_all_but({0, 1, 2, *descriptors})
        sys.argv = ["-c", root, *map(str, descriptors)]
        server.main()
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def _close_all_but(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with suppress(OSError):  # the folder that was listed
                os.close(int(name))
