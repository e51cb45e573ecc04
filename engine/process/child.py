"""A process of an engine, or of a part of one, as who started it sees it."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from engine.process.channel import Channel

_ROOT = Path(__file__).parents[2]
# Enough for its exit functions, which delete what is temporary.
SECONDS_TO_END = 2.0
# In which a process that hangs writes down where, whatever its interpreter is in the middle of.
SECONDS_TO_TELL = 0.5
TELL_WHERE = signal.SIGUSR1


class Child:
    """Runs a module's `main`, which `engine.process.begin.begin` gives the other end of `channel`.

    It does not outlive this process, however that ends, and Ctrl-C in a terminal does not reach it.
    """

    def __init__(self, server: str) -> None:
        """`server` is the module whose `main` the process runs."""
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        self._told, path = tempfile.mkstemp()
        os.unlink(path)
        descriptors = (theirs.fileno(), lifeline, self._told)
        code = f"import sys; sys.path.insert(0, sys.argv[1]); from {server} import main; main()"
        # -P: the working directory may not hide a library.
        command = [sys.executable, "-P", "-c", code, str(_ROOT), *map(str, descriptors)]
        stderr = 2
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stderr, pass_fds=descriptors, start_new_session=True
            )
        finally:
            os.close(lifeline)
            theirs.close()
        self.channel = Channel(ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def where(self) -> str:
        """Where each of its threads is; empty where it cannot say."""
        self._process.send_signal(TELL_WHERE)
        time.sleep(SECONDS_TO_TELL)
        return self._read_told()

    def end(self, *, at_once: bool = False) -> None:
        """In `SECONDS_TO_END` at most, or at once. Whoever receives from it is told."""
        if at_once:
            self.kill()
        self.channel.end()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(SECONDS_TO_END)
        self.kill()
        self._process.wait()

    def how_it_ended(self) -> tuple[str, str]:
        """In a few words, and where each of its threads was, if it could tell.

        For whoever received its last frame; nothing else may be asked of it then but to end.
        """
        self.end()
        told = self._read_told()
        self.channel.close()
        os.close(self._told)
        os.close(self._lifeline)
        return words_of(self._process.returncode), told

    def _read_told(self) -> str:
        return os.pread(self._told, 2**20, 0).decode(errors="replace").strip()


def words_of(returncode: int) -> str:
    """What a person reads of a process's end."""
    if returncode >= 0:
        return f"its process ended with exit code {returncode}"
    number = -returncode
    if number == signal.SIGKILL:
        return "its process was killed (SIGKILL), perhaps because the machine ran out of memory"
    if number == signal.SIGSEGV:
        return "its process ended by a segmentation fault (SIGSEGV)"
    try:
        return f"its process was ended by {signal.Signals(number).name}"
    except ValueError:
        return f"its process was ended by signal {number}"
