"""A forked process in the place of `subprocess.Popen`, which has at once what it would import for seconds."""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress

from tasks.engine_process import server


class ForkedProcess:
    """Runs the engine's process, of whose command line the last words are its descriptors."""

    def __init__(self, command: Sequence[str], *, pass_fds: Sequence[int], **_: object) -> None:
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                _close_all_but({0, 1, 2, *pass_fds})
                sys.argv = ["-c", *command[4:]]
                server.main()
            except BaseException:
                traceback.print_exc()
            os._exit(1)

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


def _close_all_but(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with suppress(OSError):  # the folder that was listed
                os.close(int(name))
