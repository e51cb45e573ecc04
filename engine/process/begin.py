"""What a process that `engine.process.child.Child` started does first."""

import faulthandler
import fcntl
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from engine.process.channel import Channel
from engine.process.child import TELL_WHERE

# Of a run's processes the kernel is to take this one where memory is short: it is the one that can be replaced.
OOM_SCORE = 300


def begin() -> Channel:
    """The channel to whoever started this process, with which it ends; Ctrl-C in a terminal is theirs alone."""
    connection, lifeline, told = map(int, sys.argv[2:])
    _end_with_parent(lifeline)
    faulthandler.enable(told)
    faulthandler.register(TELL_WHERE, told)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(f"{OOM_SCORE}")
    for descriptor in (connection, lifeline, told):
        os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return Channel(socket.socket(fileno=connection))


def _end_with_parent(lifeline: int) -> None:
    """The kernel kills this process when the pipe's other end is closed: a thread could not while another hangs."""
    if sys.platform.startswith("linux"):
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
